"""fio in a real QEMU guest: moved in the middle of its job, and noticing what is wrong there."""

from __future__ import annotations

import asyncio
import os

import pytest

from vmferry.api import Load
from vmferry.experiments.backends.trial import TrialRun
from vmferry.experiments.executors import perform
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import Result, RunSpec
from vmferry_lab import Lab, image, qemuguest, recipe

MIB = 1 << 20
JOB = """\
[global]
ioengine=libaio
verify=crc32c
bs=4k
rate_iops=200
filename=/dev/xvda

[log]
rw=write
size=2m
fsync=8

[tables]
rw=randwrite
offset=4m
size=4m
iodepth=4
"""
READS = "[back]\nrw=write\nsize=4m\nverify=md5\nverify_backlog=64\nrate_iops=40\n"

pytestmark = [pytest.mark.guest, pytest.mark.real, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def _guest() -> None:
    """The guest of this checkout, built if it is new and the laboratory has an image with fio."""
    lab = Lab()
    cache = lab.layout.cache
    if qemuguest.find_guest(cache):
        return
    if not image.find(cache, recipe.Recipe.of(qemuguest.FLAVOURS)):
        why = f"no image with fio in {lab.root}: python -m vmferry_lab guest"
        if os.environ.get("VMFERRY_LAB_REQUIRED"):
            pytest.fail(why)
        pytest.skip(why)
    lab.build_qemu_guest()


def spec(job: str = JOB, method: str = "vmferry", **more: float) -> RunSpec:
    return RunSpec(
        parameters=Parameters(
            hypervisor="qemu", method=method, disk_size=16 * MIB, memory=128 * MIB, block_size=4096
        ),
        load=Load(fio=job),
        **{"before": 3.0, "after": 2.0, "timeout": 300.0, **more},  # type: ignore[arg-type]
    )


def _passes(result: Result) -> list[int | None]:
    print(result.figures, *[one.facts for one in result.events if one.name == "fio"], sep="\n")
    return [one.facts["code"] for one in result.events if one.name == "fio"]


@pytest.mark.parametrize("method", ["vmferry", pytest.param("qemu-mirror", marks=pytest.mark.qemu)])
def test_fio_goes_on_in_a_guest_that_is_moved_and_finds_what_it_wrote(method: str) -> None:
    result = asyncio.run(perform(spec(method=method)))
    assert result.outcome == "done", result.error
    codes = _passes(result)
    assert codes[:-1] == [0] * (len(codes) - 1)
    assert 0 in codes
    for name in ("writes", "reads", "busy", "written_bytes"):
        times, values = result.series[name].times, result.series[name].values
        assert values == sorted(values)
        assert values[-1] > 0
        assert times == sorted(times)
        assert times[0] < 0 < times[-1], f"{name}: not before the move and after it"
    assert result.figures["lost"] == 0
    assert result.figures["checked"] == 16 * MIB // 512
    assert 0 < (result.figures["downtime_guest"] or 0) < 30


@pytest.mark.qemu
@pytest.mark.parametrize(("disk", "words"), [("disk0", "fio failed"), ("disk1", "lost")])
def test_what_is_overwritten_at_the_destination_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, disk: str, words: str
) -> None:
    migrate = TrialRun._migrate

    async def spoiled(self: TrialRun, guest: str) -> str:
        location = await migrate(self, guest)
        for _ in range(3):
            with open(location.replace("disk0", disk), "r+b") as file:
                file.write(bytes(16 * MIB))
            await asyncio.sleep(1)
        return location

    monkeypatch.setattr(TrialRun, "_migrate", spoiled)
    result = asyncio.run(perform(spec(READS)))
    print(result.error, result.figures)
    assert result.outcome == "failed"
    assert words in result.error
