"""A process guest on a served disk, moved by hand: what the engine does, without the engine."""

import asyncio
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from vmferry.api.guest import ArrivingDisk, Disk
from vmferry.errors import HypervisorError
from vmferry.testing.export import RecordingExport
from vmferry.testing.streams import stream_pair
from vmferry_hypervisors.process.checker import GuestRecord
from vmferry_hypervisors.process.driver import ProcessHypervisor
from vmferry_hypervisors.process.folder import AttachedDisk, Definition, GuestFolder
from vmferry_hypervisors.process.image import create_disk
from vmferry_hypervisors.process.launch import launch
from vmferry_hypervisors.process.memory import GuestMemory
from vmferry_hypervisors.process.options import ProcessOptions
from vmferry_hypervisors.process.stamps import DISK_MAGIC, read_stamps
from vmferry_hypervisors.process.trial import ProcessTrial, TrialOptions
from vmferry_hypervisors.process.workload import workload_of
from vmferry_trackers.export import ExportTracker

pytestmark = pytest.mark.real

MIB = 1 << 20
OPTIONS = TrialOptions(
    memory=16 * MIB,
    write_rate=600,
    queue_depth=8,
    read_ratio=0.2,
    zero_ratio=0.05,
    trim_ratio=0.05,
    fsync_every=20,
    timeout=300,
)


@pytest.fixture
async def trial(tmp_path):
    trial = ProcessTrial(OPTIONS)
    try:
        yield trial
    finally:
        await trial.close()


def host(trial, role):
    return ProcessHypervisor(msgspec.convert(trial.host_options(role), ProcessOptions))


class Move:
    """The steps of a migration from the trial's source to its destination."""

    def __init__(self, trial, folder):
        self.trial, self.copy = trial, folder / "copy.raw"
        self.export = RecordingExport(self.copy, folder / "pull.sock")

    async def prepare(self, name):
        source, destination = host(self.trial, "source"), host(self.trial, "destination")
        guest = await source.describe(name)
        (self.disk,) = guest.disks
        self.tracker = ExportTracker()
        await self.tracker.start(self.disk, 4096)
        self.copy.touch()
        os.truncate(self.copy, self.disk.size)
        self.export.opened.clear()
        await self.export.start()
        one, other = stream_pair()
        self.arriving = ArrivingDisk(
            disk=self.disk, volume="raw", location=str(self.copy), export=self.export.url
        )
        assert not await destination.check_arrival(guest)
        self.departure = await source.depart(guest, one)
        self.arrival = await destination.arrive(guest, [self.arriving], other)

    async def push(self):
        async with asyncio.TaskGroup() as group:
            group.create_task(self.arrival.receive())
            await self.departure.precopy()
            await self.departure.suspend()
            await self.tracker.drain()
            await self.departure.transfer()
        await asyncio.to_thread(shutil.copyfile, self.disk.location, self.copy)

    async def switch(self):
        self.export.opened.set()
        await self.departure.release()
        await self.arrival.activate()
        await self.departure.destroy()
        await self.tracker.stop()


async def wrote_more(trial, writes=20):
    start = (await trial.status()).writes
    async with asyncio.timeout(300):
        while (await trial.status()).writes < start + writes:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_guest_moves_with_requests_under_way(trial, tmp_path):
    move = Move(trial, tmp_path)
    name = await trial.start(tmp_path, 32 * MIB)
    await move.prepare(name)
    try:
        await wrote_more(trial)
        await move.push()
        before = await trial.status()
        await move.switch()
        await wrote_more(trial)
        downtime = await move.arrival.guest_downtime()
        assert 0 < downtime <= (await trial.status()).longest_gap < 20
        await move.arrival.pivot(move.arriving)
        served = move.export.requests
        await wrote_more(trial)
        assert move.export.requests == served
        await move.arrival.finish()
        described = await host(trial, "destination").describe(name)
        assert described.disks[0].location == str(move.copy)
        verdict = await trial.verdict(str(move.copy))
        assert verdict.good, verdict
        assert verdict.acknowledged > before.writes
        assert verdict.checked == 32 * MIB // 4096
    finally:
        await move.export.stop()


async def test_stale_copy_is_condemned(trial, tmp_path):
    """The check is worth something: writes that did not make the journey are counted as lost."""
    move = Move(trial, tmp_path)
    name = await trial.start(tmp_path, 32 * MIB)
    await move.prepare(name)
    try:
        stale = tmp_path / "stale.raw"
        await asyncio.to_thread(shutil.copyfile, move.disk.location, stale)
        await wrote_more(trial, 100)
        await move.push()
        await asyncio.to_thread(shutil.copyfile, stale, move.copy)
        await move.switch()
        await wrote_more(trial)
        verdict = await trial.verdict(str(move.copy))
        assert not verdict.good
        assert verdict.lost > 50
    finally:
        await move.export.stop()


async def test_requests_under_way_survive_a_resume_at_the_source(trial, tmp_path):
    name = await trial.start(tmp_path, 32 * MIB)
    guest = await host(trial, "source").describe(name)
    for _ in range(3):
        departure = await host(trial, "source").depart(guest, stream_pair()[0])
        await departure.suspend()
        still = await trial.status()
        await asyncio.sleep(0.1)
        assert await trial.status() == still
        await departure.resume()
        await wrote_more(trial)
    assert (await trial.verdict(guest.disks[0].location)).good


async def test_guest_outlives_a_broken_disk_server(tmp_path):
    """A disk that goes away, refuses, and comes back costs the guest time and nothing else."""
    path = tmp_path / "disk.raw"
    create_disk(path, 8 * MIB, OPTIONS.unit, OPTIONS.prefill)
    export = RecordingExport(path, tmp_path / "disk.sock")
    await export.start()
    disk = AttachedDisk(Disk(name="disk0", size=8 * MIB, location=str(path)), export.url)
    trial = ProcessTrial(OPTIONS)
    trial._folder = tmp_path
    definition = Definition(
        name="demo", memory=16 * MIB, disks=(disk,), workload=workload_of(OPTIONS)
    )
    await asyncio.to_thread(launch, tmp_path / "source", definition)
    try:
        for _ in range(3):
            await wrote_more(trial)
            export.drop()
        await wrote_more(trial)
        await export.stop()
        await asyncio.sleep(0.2)
        assert not await is_moving(trial)
        await export.start()
        export.refuse += [28] * 5
        await wrote_more(trial)
        status = await trial.status()
        assert status.errors == 5
        assert GuestFolder(tmp_path / "source", "demo").registers().reconnects >= 4
        assert (await trial.verdict(str(path))).good
    finally:
        await trial.close()
        await export.stop()


async def is_moving(trial):
    start = (await trial.status()).writes
    await asyncio.sleep(0.2)
    return (await trial.status()).writes > start


class TestVerdict:
    """One fault at a time, put in by hand behind the guest's back."""

    @pytest.fixture
    async def stopped(self, trial, tmp_path):
        """A guest that has written for a while and stands still, and the units it last wrote."""
        await trial.start(tmp_path, 8 * MIB)
        await wrote_more(trial, 300)
        assert (await trial.verdict(str(tmp_path / "disk0.raw"))).good
        return trial, tmp_path / "disk0.raw"

    @staticmethod
    def written_unit(disk):
        words = np.fromfile(disk, dtype="<u8").reshape(-1, 512)
        sequences = read_stamps(DISK_MAGIC, np.arange(len(words)), words)
        return int(np.argmax(sequences))

    @staticmethod
    def overwrite(disk, offset, data):
        with open(disk, "r+b") as file:
            file.seek(offset)
            file.write(data)

    async def test_lost_write(self, stopped):
        trial, disk = stopped
        self.overwrite(disk, self.written_unit(disk) * 4096, bytes(4096))
        verdict = await trial.verdict(str(disk))
        assert (verdict.lost, verdict.wrong) == (1, 0)
        assert "holds zeroes" in verdict.examples[-1]

    async def test_flipped_bit(self, stopped):
        trial, disk = stopped
        at = self.written_unit(disk) * 4096 + 1000
        data = disk.read_bytes()[at]
        self.overwrite(disk, at, bytes([data ^ 1]))
        verdict = await trial.verdict(str(disk))
        assert (verdict.lost, verdict.wrong) == (0, 1)

    async def test_misplaced_write(self, stopped):
        trial, disk = stopped
        unit = self.written_unit(disk)
        data = disk.read_bytes()[unit * 4096 : (unit + 1) * 4096]
        self.overwrite(disk, (unit ^ 1) * 4096, data)
        verdict = await trial.verdict(str(disk))
        assert (verdict.lost, verdict.wrong) == (0, 1)

    async def test_damaged_memory(self, stopped):
        trial, disk = stopped
        folder = trial._wherever().path
        memory = GuestMemory(folder)
        used = memory.pages.any(axis=1).nonzero()[0]
        memory.pages[used[-1], 7] ^= 1
        memory.close()
        verdict = await trial.verdict(str(disk))
        assert verdict.bad_memory == 1

    async def test_memory_that_forgot_acknowledgements(self, stopped):
        """The console, which never moved, still knows what the table in memory lost."""
        trial, disk = stopped
        folder = trial._wherever().path
        unit = self.written_unit(disk)
        plan = GuestRecord.read(folder).program.plan
        with open(folder / "memory", "r+b") as memory:
            memory.seek(plan.disks[0].table + unit * 4)
            memory.write(bytes(4))
        self.overwrite(disk, unit * 4096, bytes(4096))
        verdict = await trial.verdict(str(disk))
        assert verdict.bad_memory == 1
        assert verdict.lost == 1


async def test_killed_guest_is_judged_by_what_was_acknowledged(trial, tmp_path):
    await trial.start(tmp_path, 8 * MIB)
    await wrote_more(trial, 200)
    trial._wherever().kill()
    with pytest.raises(HypervisorError, match="ended"):
        await trial.status()
    verdict = await trial.verdict(str(tmp_path / "disk0.raw"))
    assert verdict.good
    assert "good order" in verdict.examples[0]


async def test_guest_outlives_whoever_started_it(trial, tmp_path):
    """It has a session of its own and no descriptor of its parent's."""
    await trial.start(tmp_path, 8 * MIB)
    pid = trial._wherever().pid()
    process = psutil.Process(pid)
    assert os.getsid(pid) == pid != os.getsid(0)
    assert process.ppid() != os.getpid()
    targets = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert not [target for target in targets if target.startswith("pipe:")]


async def test_close_ends_every_process(trial, tmp_path):
    await trial.start(tmp_path, 8 * MIB)
    await trial.close()
    await trial.close()
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(tmp_path) in word for word in process.info["cmdline"] or ())
    ]
    assert not left
