"""The ``blkback`` tracker's own steps, with the kernel's part played."""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
from pathlib import Path

import pytest

from vmferry.api.findings import Severity
from vmferry.api.guest import Disk
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError
from vmferry.units import MIB, TIB
from vmferry_trackers.blkback import needs, tracker
from vmferry_trackers.blkback.device import BlockDevice, Kind
from vmferry_trackers.blkback.tracker import BlkbackOptions, BlkbackTracker
from vmferry_trackers.ebpf import kernel
from vmferry_trackers.ebpf.btf import BtfError

SIZE = MIB
DISK = Disk(name="xvda", size=SIZE, facts={"devno": "7:3"})


class FakeRecord:
    """Writes are marked by ``write``; the harvest waits for ``gate``."""

    made: list[FakeRecord]
    fails: Exception | None = None

    def __init__(self, device, block_size):
        if self.fails:
            raise self.fails
        self.live, self.pending = DirtyMap(SIZE, block_size), DirtyMap(SIZE, block_size)
        self.gate, self.flying, self.open = threading.Event(), 0, True
        self.gate.set()
        self.attached = False
        self.made.append(self)

    def attach(self):
        self.attached = True

    def write(self, offset):
        self.live.mark(offset, 1)

    def collect(self):
        assert self.gate.wait(30)
        self.pending |= self.live.take()

    def take(self):
        return self.pending.take()

    def in_flight(self):
        return self.flying

    def forget_loss(self):
        return

    def close(self):
        self.open = False


@pytest.fixture
def record(monkeypatch):
    FakeRecord.made, FakeRecord.fails = [], None
    folder = Path("/sys/block/loop3")
    device = BlockDevice("loop3", 7, 3, 0, SIZE // 512, Kind(requests=True), folder, folder)
    monkeypatch.setattr(tracker, "Record", FakeRecord)
    monkeypatch.setattr(needs, "Record", FakeRecord)
    monkeypatch.setattr(
        tracker, "find_device", lambda disk: device._replace(sectors=disk.size // 512)
    )
    return FakeRecord


@pytest.fixture
async def tracking(record):
    made = BlkbackTracker(BlkbackOptions(settle=0, drain_timeout=0.05))
    await made.start(DISK, 4096)
    yield made
    await made.stop()


async def test_harvest_has_what_was_marked(record, tracking):
    record.made[0].write(5000)
    assert list((await tracking.harvest()).runs()) == [(4096, 4096)]
    assert not await tracking.harvest()


async def test_cancelled_harvest_leaves_its_blocks_to_the_next(record, tracking):
    only = record.made[0]
    only.write(5000)
    only.gate.clear()
    harvest = asyncio.create_task(tracking.harvest())
    await asyncio.sleep(0.01)
    harvest.cancel()
    await asyncio.sleep(0.01)
    assert not harvest.done()  # its thread is still at work on the maps
    only.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await harvest
    assert list((await tracking.harvest()).runs()) == [(4096, 4096)]


async def test_stop_waits_for_a_harvest(record, tracking):
    only = record.made[0]
    only.gate.clear()
    harvest = asyncio.create_task(tracking.harvest())
    await asyncio.sleep(0.01)
    stop = asyncio.create_task(tracking.stop())
    await asyncio.sleep(0.01)
    assert only.open
    only.gate.set()
    await asyncio.gather(harvest, stop)
    assert not only.open


async def test_drain_waits_for_what_is_in_flight(record, tracking):
    only = record.made[0]
    only.flying = 3
    tracking.options = BlkbackOptions(settle=0, drain_timeout=60)
    drain = asyncio.create_task(tracking.drain())
    await asyncio.sleep(0.02)
    assert not drain.done()
    only.flying = 0
    await drain


async def test_drain_says_when_writes_do_not_end(record, tracking):
    record.made[0].flying = 3
    with pytest.raises(TrackerError, match="is the guest suspended"):
        await tracking.drain()


async def test_settle_must_be_quiet_throughout(record, tracking, monkeypatch):
    clock = itertools.count(0, 0.004)
    monkeypatch.setattr(tracker, "_now", lambda: next(clock))
    tracking.options = BlkbackOptions(settle=0.01, drain_timeout=60)
    looks = iter([0, 1, 0, 1, 0, 0, 0, 0, 1])
    record.made[0].in_flight = lambda: next(looks, 1)
    await tracking.drain()
    assert list(looks) == [1]


@pytest.mark.parametrize("call", ["harvest", "drain"])
async def test_nothing_is_tracked_after_stop(tracking, call):
    await tracking.stop()
    await tracking.stop()
    with pytest.raises(TrackerError, match="call start first"):
        await getattr(tracking, call)()


async def test_failed_attach_gives_everything_back(record, monkeypatch):
    def fail(self):
        raise kernel.BpfError("attaching a program", errno.EPERM)

    monkeypatch.setattr(record, "attach", fail)
    with pytest.raises(TrackerError, match="Operation not permitted"):
        await BlkbackTracker().start(DISK, 4096)
    assert not record.made[0].open


async def test_large_disk_gets_larger_blocks_and_is_told(record):
    large = Disk(name="xvda", size=64 * TIB, facts={"devno": "7:3"})
    (finding,) = await BlkbackTracker().check(large, 4096)
    assert finding.severity is Severity.INFO
    assert "64.0 KiB in place of 4.0 KiB" in finding.text
    assert "max_memory" in finding.remedy


async def test_disk_for_which_no_block_is_large_enough_is_refused(record):
    huge = Disk(name="xvda", size=1 << 53, facts={"devno": "7:3"})
    small = BlkbackTracker(BlkbackOptions(max_memory=MIB))
    (finding,) = await small.check(huge, 4096)
    assert finding.severity is Severity.ERROR
    with pytest.raises(TrackerError, match="raise the option max_memory"):
        await small.start(huge, 4096)
    assert not record.made


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        (kernel.BpfError("loading", errno.EPERM), "run as root"),
        (kernel.BpfError("loading", errno.ENOSYS), "CONFIG_BPF_SYSCALL"),
        (kernel.BpfError("loading", errno.EINVAL, "R1 invalid"), "Linux 5.12"),
        (BtfError("no struct bio"), "CONFIG_DEBUG_INFO_BTF"),
    ],
)
async def test_check_says_what_the_kernel_lacks(record, failure, remedy):
    record.fails = failure
    (finding,) = await BlkbackTracker().check(DISK, 4096)
    assert finding.severity is Severity.ERROR
    assert str(failure) in finding.text
    assert remedy in finding.remedy


async def test_check_names_a_disk_that_is_nowhere():
    (finding,) = await BlkbackTracker().check(Disk(name="xvdz", size=512), 4096)
    assert finding.severity is Severity.ERROR
    assert "xvdz" in finding.text
    assert finding.remedy


def test_refusal_of_the_kernel_is_explained():
    with pytest.raises(kernel.BpfError) as refused:
        kernel.load_program("nothing", b"\x95" + bytes(7), 1)
    assert refused.value.number
    assert "loading the program nothing" in str(refused.value)
