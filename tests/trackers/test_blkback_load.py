"""The ``blkback`` tracker under the load of fio, and with more than it can note."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest
from blockdevices import run
from rigs import PartitionRig
from test_blkback import Blkback

from vmferry.testing.tracker import copy_blocks
from vmferry.units import MIB, SECTOR
from vmferry_trackers.blkback.program import LONG_RANGES
from vmferry_trackers.blkback.record import Record, absorb

pytestmark = pytest.mark.real


class Large(Blkback):
    size = 64 * MIB


class LargePartition(Blkback, PartitionRig):
    size = 64 * MIB


async def storm(device: str) -> asyncio.subprocess.Process:
    """Writes each block once, in random order, 32 at a time: what is missed once stays missed."""
    if not shutil.which("fio"):
        pytest.skip("fio is not installed")
    return await asyncio.create_subprocess_exec(
        *("fio", "--name=storm", f"--filename={device}", "--direct=1", "--rw=randwrite"),
        *("--bs=4k", "--ioengine=libaio", "--iodepth=32", "--size=64m", "--rate_iops=4000"),
        stdout=asyncio.subprocess.DEVNULL,
    )


async def lost_in_a_storm(rig: Large) -> list[int]:
    """Two copies compared, the disk and what a migration would have made of it: what differs."""
    await rig.tracker.start(rig.disk, 4096)
    copy = bytearray(rig.disk.size)
    fio = await storm(rig.device)
    try:
        while fio.returncode is None:
            await asyncio.to_thread(copy_blocks, rig, await rig.tracker.harvest(), copy)
    finally:
        if fio.returncode is None:
            fio.kill()
        await fio.wait()
    assert fio.returncode == 0
    await rig.tracker.drain()
    copy_blocks(rig, await rig.tracker.harvest(), copy)
    disk = rig.read_raw(0, rig.disk.size)
    places = range(0, rig.disk.size, 4096)
    return [at for at in places if copy[at : at + 4096] != disk[at : at + 4096]]


@pytest.mark.parametrize("kind", [Large, LargePartition])
async def test_nothing_is_lost_in_a_storm(tmp_path, kind):
    async with kind(tmp_path) as rig:
        lost = await lost_in_a_storm(rig)
        assert not lost, f"{len(lost)} blocks are not in the copy"


@pytest.mark.mutant
async def test_a_map_that_is_read_and_then_zeroed_loses_writes_and_the_storm_shows_it(
    tmp_path, monkeypatch
):
    def read_then_zero(record: Record) -> None:
        absorb(record._marked.words, record._pending)

    monkeypatch.setattr(Record, "collect", read_then_zero)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        async with Large(folder) as rig:
            if await lost_in_a_storm(rig):
                return
    pytest.fail("five storms, and nothing was missing")


async def test_what_the_programs_do_not_see_makes_everything_dirty(tmp_path, monkeypatch):
    """As under a kernel that keeps events from programs: its statistics know better."""
    async with Large(tmp_path) as rig:
        await rig.tracker.start(rig.disk, 4096)
        await rig.guest_write(0, bytes(4096))
        assert (await rig.tracker.harvest()).count() == 1
        await rig.guest_write(8192, bytes(4096))
        rig.tracker._record._marked.words[:] = 0
        assert (await rig.tracker.harvest()).all(0, rig.disk.size)
        assert not await rig.tracker.harvest()


async def test_long_discards_are_exact_and_too_many_are_everything(tmp_path):
    long = 40 * MIB  # more than the loop of the program marks, in blocks of a sector
    async with Large(tmp_path) as rig:
        await rig.tracker.start(rig.disk, SECTOR)
        await rig.guest_discard(MIB + SECTOR, long)
        assert list((await rig.tracker.harvest()).runs()) == [(MIB + SECTOR, long)]
        for _ in range(LONG_RANGES + 1):
            await rig.guest_discard(0, long)
        dirty = await rig.tracker.harvest()
        assert dirty.all(0, rig.disk.size)
        assert not await rig.tracker.harvest()


async def test_writes_beside_a_partition_are_not_its_own(tmp_path):
    async with LargePartition(tmp_path) as rig:
        await rig.tracker.start(rig.disk, 4096)
        whole = rig.device_below
        run("dd", "if=/dev/zero", f"of={whole}", "bs=512", "count=25", "oflag=direct")
        assert not await rig.tracker.harvest()
        run("dd", "if=/dev/zero", f"of={whole}", "bs=512", "count=26", "oflag=direct")
        assert list((await rig.tracker.harvest()).runs()) == [(0, 4096)]


async def test_two_trackers_do_not_see_each_others_writes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with Large(tmp_path / "a") as one, Large(tmp_path / "b") as other:
        await one.tracker.start(one.disk, 4096)
        await other.tracker.start(other.disk, 65536)
        await one.guest_write(8192, bytes(4096))
        assert not await other.tracker.harvest()
        assert (await one.tracker.harvest()).count() == 1


async def test_nothing_stays_open_after_stop(tmp_path):
    async with Large(tmp_path) as rig:
        before = set(os.listdir("/proc/self/fd"))
        await rig.tracker.start(rig.disk, 4096)
        assert len(os.listdir("/proc/self/fd")) > len(before)
        await rig.tracker.stop()
        assert set(os.listdir("/proc/self/fd")) == before
