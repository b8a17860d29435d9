from __future__ import annotations

import asyncio
import random
import struct

import msgpack
import pytest

from vmferry.api import BlockIO, Disk, Geometry, Severity
from vmferry.errors import TrackerError
from vmferry.export.daemon import ExportDaemon, ExportPaths
from vmferry_trackers.export import ExportOptions, ExportTracker

BLOCK = 4096
SIZE = 256 * BLOCK
QUICK = ExportOptions(connect_timeout=1, request_timeout=0.2, drain_timeout=0.1)


class SlowDisk(BlockIO):
    """Each write takes a random while before and after it lands."""

    def __init__(self, seed=1):
        self.bytes = bytearray(SIZE)
        self.chance = random.Random(seed)
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def geometry(self):
        return Geometry(SIZE, 512)

    async def read_into(self, offset, buffer):
        buffer[:] = self.bytes[offset : offset + len(buffer)]

    async def write(self, offset, data):
        await self.gate.wait()
        await asyncio.sleep(self.chance.choice((0, 0, 0, 0.002, 0.006)))
        self.bytes[offset : offset + len(data)] = data
        for _ in range(self.chance.randrange(5)):
            await asyncio.sleep(0)

    async def flush(self):
        return


@pytest.fixture
def below():
    return SlowDisk()


@pytest.fixture
async def daemon(tmp_path, below):
    daemon = ExportDaemon({"d": below})
    await daemon.start(ExportPaths(socket=tmp_path / "n", control=tmp_path / "c"))
    yield daemon
    await daemon.close()


@pytest.fixture
def served(daemon):
    return daemon._disks["d"]


@pytest.fixture
def disk(tmp_path):
    facts = {"control": str(tmp_path / "c"), "export": "d"}
    return Disk(name="vda", size=SIZE, facts=facts)


@pytest.fixture
async def tracker():
    tracker = ExportTracker()
    yield tracker
    await tracker.stop()


async def put(served, block, text=b"x"):
    await served.write(block * BLOCK, memoryview(text * BLOCK))


def blocks(taken):
    return [o // BLOCK + n for o, length in taken.runs() for n in range(length // BLOCK)]


async def test_a_whole_life(daemon, served, disk, tracker):
    assert await tracker.check(disk, BLOCK) == []
    await put(served, 0)
    assert await tracker.start(disk, BLOCK) == BLOCK
    await put(served, 1)
    await served.write_zeroes(2 * BLOCK, BLOCK)
    await served.discard(9 * BLOCK, BLOCK)
    assert blocks(await tracker.harvest()) == [1, 2, 9]
    await put(served, 3)
    await tracker.drain()
    assert blocks(await tracker.harvest()) == [3]
    assert blocks(await tracker.harvest()) == []
    await tracker.stop()
    await tracker.stop()
    assert not served.tracking
    with pytest.raises(TrackerError, match="not started"):
        await tracker.harvest()
    assert await tracker.start(disk, 2 * BLOCK) == 2 * BLOCK


async def test_stop_before_start():
    await ExportTracker().stop()


async def test_a_harvest_that_is_cancelled_at_any_moment_loses_nothing(
    daemon, served, disk, tracker
):
    await tracker.start(disk, BLOCK)
    taken, cancelled = set(), 0
    for number in range(40):
        await put(served, number)
        task = asyncio.create_task(tracker.harvest())
        for _ in range(number % 20):
            await asyncio.sleep(0)
        task.cancel()
        try:
            taken.update(blocks(await task))
        except asyncio.CancelledError:
            cancelled += 1
    taken.update(blocks(await tracker.harvest()))
    assert taken == set(range(40))
    assert cancelled > 10


async def test_a_harvest_that_times_out_loses_nothing(daemon, served, disk, tracker, monkeypatch):
    tracker = ExportTracker(QUICK)
    await tracker.start(disk, BLOCK)
    await put(served, 5)
    reader = tracker._client._reader
    held = asyncio.Event()
    read = reader.readexactly

    async def late(count):
        await held.wait()
        return await read(count)

    monkeypatch.setattr(reader, "readexactly", late)
    with pytest.raises(TrackerError, match=r"did not answer 'harvest' in 0\.2 s"):
        await tracker.harvest()
    held.set()
    assert blocks(await tracker.harvest()) == [5]
    await tracker.stop()


async def test_a_broken_connection_is_made_again(daemon, served, disk, tracker):
    await tracker.start(disk, BLOCK)
    await put(served, 1)
    assert blocks(await tracker.harvest()) == [1]
    await put(served, 2)
    tracker._client._writer.transport.abort()
    assert set(blocks(await tracker.harvest())) >= {2}
    tracker._client._writer.transport.abort()
    await tracker.stop()
    assert not served.tracking


async def test_somebody_elses_start_in_between_is_noticed(daemon, served, disk, tracker):
    await tracker.start(disk, BLOCK)
    tracker._client._writer.transport.abort()
    async with asyncio.timeout(60):
        while (await tracker._look(disk.facts["control"]))["d"].tracked:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    other = ExportTracker()
    await other.start(disk, BLOCK)
    with pytest.raises(TrackerError, match="session has ended"):
        await tracker.harvest()
    await tracker.stop()
    assert served.tracking
    await other.stop()


async def test_a_second_tracker_is_refused(daemon, disk, tracker):
    await tracker.start(disk, BLOCK)
    other = ExportTracker()
    [finding] = await other.check(disk, BLOCK)
    assert (finding.severity, finding.code) == (Severity.ERROR, "export-tracked")
    with pytest.raises(TrackerError, match="another migration"):
        await other.start(disk, BLOCK)
    await other.stop()
    assert blocks(await tracker.harvest()) == []


async def test_the_end_of_the_daemon(daemon, disk, tracker):
    await tracker.start(disk, BLOCK)
    await daemon.close()
    with pytest.raises(TrackerError, match="cannot connect"):
        await tracker.harvest()
    await tracker.stop()
    [finding] = await tracker.check(disk, BLOCK)
    assert finding.code == "export-unreachable"
    with pytest.raises(TrackerError, match="cannot be tracked"):
        await tracker.start(disk, BLOCK)


async def test_a_drain_that_takes_too_long(daemon, served, below, disk):
    tracker = ExportTracker(QUICK)
    await tracker.start(disk, BLOCK)
    below.gate.clear()
    task = asyncio.create_task(put(served, 1))
    await asyncio.sleep(0)
    with pytest.raises(TrackerError, match="did not end within"):
        await tracker.drain()
    below.gate.set()
    await tracker.drain()
    assert task.done()
    await tracker.stop()


async def test_a_start_that_is_cancelled_leaves_nothing_behind(daemon, served, below, disk):
    tracker = ExportTracker()
    below.gate.clear()
    task = asyncio.create_task(put(served, 1))
    starting = asyncio.create_task(tracker.start(disk, BLOCK))
    await asyncio.sleep(0.05)
    assert served.tracking
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    below.gate.set()
    await task
    async with asyncio.timeout(60):
        while served.tracking:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"facts": {}}, "export-no-control"),
        ({"facts": {"control": "c"}}, "export-no-export"),
        ({"facts": {"control": "/nonexistent/c", "export": "d"}}, "export-unreachable"),
        ({"size": 2 * SIZE}, "export-size"),
        ({"export": "e"}, "export-unknown"),
    ],
)
async def test_check_and_start_name_what_is_wrong(daemon, disk, tracker, change, code):
    facts = {**change.get("facts", disk.facts)}
    if "export" in change:
        facts["export"] = change["export"]
    wrong = Disk(name="vda", size=change.get("size", SIZE), facts=facts)
    finding = (await tracker.check(wrong, BLOCK))[0]
    assert (finding.severity, finding.code) == (Severity.ERROR, code)
    assert "vda" in finding.text
    assert finding.remedy
    with pytest.raises(TrackerError, match="vda"):
        await tracker.start(wrong, BLOCK)


@pytest.mark.parametrize(
    "reply",
    [
        struct.pack(">I", (256 << 20) + 1),
        b"\0\0\0\1\xc1",
        struct.pack(">I", 7) + msgpack.packb({"ok": 7})[:7].ljust(7, b"\0"),
        b"\0\0\0\5ab",
    ],
    ids=["too long", "not msgpack", "not a reply", "cut off"],
)
async def test_a_broken_daemon_is_reported(tmp_path, disk, reply):
    async def answer(reader, writer):
        await reader.read(100)
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "c")
    async with server:
        with pytest.raises(TrackerError, match="cannot be tracked"):
            await ExportTracker(QUICK).start(disk, BLOCK)


@pytest.mark.parametrize("seed", range(6))
async def test_every_acknowledged_write_is_in_the_next_harvest(daemon, served, below, disk, seed):
    below.chance.seed(seed)
    chance = random.Random(seed)
    tracker = ExportTracker()
    stop, acknowledged = asyncio.Event(), set()

    async def writer():
        while not stop.is_set():
            block = chance.randrange(256)
            await put(served, block, bytes([chance.randrange(256)]))
            acknowledged.add(block)

    async def copy(taken):
        for offset, length in list(taken.runs()):
            await asyncio.sleep(0)
            target[offset : offset + length] = below.bytes[offset : offset + length]

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(writer())
        await asyncio.sleep(0)
        await tracker.start(disk, BLOCK)
        acknowledged.clear()
        target, found = bytearray(below.bytes), set()
        for _ in range(20):
            await asyncio.sleep(0.001)
            due = set(acknowledged)
            acknowledged.clear()
            taken = await tracker.harvest()
            found, before = set(blocks(taken)), found
            assert due <= found | before  # the harvest before may have been taken after the reply
            await copy(taken)
        stop.set()
    await tracker.drain()
    await copy(await tracker.harvest())
    assert target == below.bytes
    await tracker.stop()
