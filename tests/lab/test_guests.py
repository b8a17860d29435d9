"""The guest: it writes, it notices what is wrong with its disk, and its memory migrates."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import pytest

from vmferry_lab import Host
from vmferry_lab.errors import LabError

MIB = 1 << 20


@pytest.fixture
def name(hosta: Host, hostb: Host) -> Iterator[str]:
    name = f"guest-{secrets.token_hex(3)}"
    yield name
    for host in (hosta, hostb):
        host.guests.destroy(name)
        for disk in (name, f"{name}-2"):
            host.guests.remove_disk(disk)


def _until_written(host: Host, name: str, writes: int) -> None:
    deadline = time.monotonic() + 600
    while (report := host.guests.report(name)).writes < writes or report.busy:
        assert time.monotonic() < deadline, report


def test_a_guest_writes_two_disks_and_finds_them_good(hosta: Host, name: str) -> None:
    disks = [hosta.guests.make_disk(disk, 32 * MIB) for disk in (name, f"{name}-2")]
    hosta.guests.start(name, disks, rate=40, lanes=2, discard=6, flush=6, verify=3, network=True)
    _until_written(hosta, name, 100)
    hosta.guests.order(name, "rate idle")
    verdict = hosta.guests.verdict(name)
    assert verdict.good
    assert verdict.sectors > 0
    assert min(verdict.reads, verdict.flushes, verdict.discards) > 0
    assert verdict.discards_refused == 0


def test_one_lost_sector_is_noticed(hosta: Host, name: str) -> None:
    disk = hosta.guests.make_disk(name, 16 * MIB)
    hosta.guests.start(name, [disk], rate="idle", prefill=2)
    _until_written(hosta, name, 1)
    assert hosta.guests.verdict(name).sectors == 2 * MIB // 512
    hosta.run(f"dd if=/dev/zero of={disk} bs=512 seek=777 count=1 oflag=direct status=none")
    verdict = hosta.guests.verdict(name)
    assert (verdict.good, verdict.bad_now) == (False, 1)
    assert '"sector": 777' in hosta.guests.console(name)


def test_a_guest_that_has_no_disk_is_refused_in_words(hosta: Host, name: str) -> None:
    disk = hosta.guests.make_disk(name, 16 * MIB)
    with pytest.raises(LabError, match="cannot use its disks"):
        hosta.guests.start(name, [disk], disks="xvdz")


def test_what_a_guest_remembers_moves_with_it(hosta: Host, hostb: Host, name: str) -> None:
    disk = hosta.guests.make_disk(name, 16 * MIB)
    hostb.guests.make_disk(name, 16 * MIB)
    hosta.guests.start(name, [disk], rate="idle", prefill=4)
    _until_written(hosta, name, 1)
    hosta.run(
        f"dd if={disk} iflag=direct bs=1M status=none | ssh hostb dd of={disk} bs=1M status=none"
    )
    hosta.run(["xl", "migrate", name, "hostb"])
    assert name not in hosta.guests.running()
    verdict = hostb.guests.verdict(name)
    assert verdict.good
    assert verdict.sectors == 4 * MIB // 512
    assert verdict.gap > verdict.gap_running
