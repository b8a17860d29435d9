"""fio inside a guest: moved in the middle of its job, and noticing what is wrong with its disk."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

import pytest

from vmferry.api import Load
from vmferry.experiments.executors import perform
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import RunSpec
from vmferry_lab import Host, Lab

MIB = 1 << 20
JOB = """\
[global]
ioengine=libaio
verify=crc32c
bs=4k
rate_iops=20

[log]
rw=write
size=2m
fsync=8

[tables]
rw=randwrite
offset=4m
size=2m
iodepth=4
"""
READS = "[back]\nrw=write\nsize=4m\nverify=md5\nverify_backlog=64\nrate_iops=40\n"


@pytest.fixture(autouse=True)
def _fio(hosta: Host) -> None:
    if not hosta.guests.have_fio():
        pytest.skip("the laboratory is not up with fio: python -m vmferry_lab up --with fio")


@pytest.fixture
def name(hosta: Host) -> Iterator[str]:
    name = f"fio-{secrets.token_hex(3)}"
    yield name
    hosta.guests.destroy(name)
    for disk in (name, f"{name}-writer"):
        hosta.guests.remove_disk(disk)


def test_fio_goes_on_in_a_guest_that_is_moved_and_finds_what_it_wrote(lab: Lab) -> None:
    spec = RunSpec(
        parameters=Parameters(hypervisor="xen", disk_size=16 * MIB, block_size=4096),
        load=Load(fio=JOB),
        lab={"folder": str(lab.root)},
        before=5.0,
        after=5.0,
        timeout=900.0,
    )
    result = asyncio.run(perform(spec))
    assert result.outcome == "done", result.error
    passes = [one.facts for one in result.events if one.name == "fio"]
    print(passes, result.figures, sep="\n")
    assert passes[0]["writes"] > 0
    assert [one["code"] for one in passes[:-1]] == [0] * (len(passes) - 1)
    for name in ("writes", "busy", "written_bytes"):
        times, values = result.series[name].times, result.series[name].values
        assert values == sorted(values)
        assert times == sorted(times)
        assert times[0] < 0 < times[-1], f"{name}: not before the move and after it"
    assert result.figures["lost"] == 0
    assert result.figures["checked"] > 0


def test_a_block_that_is_lost_fails_fio(hosta: Host, name: str) -> None:
    disks = [hosta.guests.make_disk(disk, 16 * MIB) for disk in (name, f"{name}-writer")]
    hosta.guests.start(name, disks, fio=READS, rate="idle")
    zero = f"dd if=/dev/zero of={disks[0]} bs=1M count=4 oflag=direct status=none"
    hosta.run(f"for i in 1 2 3; do {zero}; sleep 1; done")
    end = hosta.guests.fio_pass(name)
    assert (end.code, end.error) == (1, 84)
    assert "verify" in hosta.guests.fio_said(name)
    assert hosta.guests.verdict(name).good, "the writer has the other disk"
