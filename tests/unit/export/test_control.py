from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager, suppress

import msgpack
import pytest

from vmferry.api import Geometry
from vmferry.dirtymap import DirtyMap
from vmferry.errors import InputError
from vmferry.export.daemon import ExportDaemon, ExportPaths, serve_disks

BLOCK = 4096
SIZE = 1 << 20


class Control:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def ask(self, op, **fields):
        return await self.ask_raw(msgpack.packb({"op": op, "disk": "d", **fields}))

    async def ask_raw(self, body):
        self.writer.write(struct.pack(">I", len(body)) + body)
        return await self.answer()

    async def answer(self):
        (length,) = struct.unpack(">I", await self.reader.readexactly(4))
        return msgpack.unpackb(await self.reader.readexactly(length))

    async def harvest(self, confirm=0):
        reply = await self.ask("harvest", confirm=confirm)
        taken = DirtyMap.decode(reply["map"], size=SIZE, block_size=BLOCK)
        return reply["number"], list(taken.runs())


class Site:
    def __init__(self, daemon, paths, disk):
        self.daemon, self.paths, self.disk = daemon, paths, disk

    async def write(self, offset, length=512):
        await self.daemon._disks["d"].write(offset, memoryview(bytes(length)))

    @asynccontextmanager
    async def control(self):
        reader, writer = await asyncio.open_unix_connection(str(self.paths.control))
        try:
            yield Control(reader, writer)
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def orphaned(self):
        async with asyncio.timeout(60), self.control() as control:
            while (await control.ask("status"))["disks"]["d"]["tracked"]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def site(tmp_path, make_disk):
    disk = make_disk(SIZE)
    paths = ExportPaths(socket=tmp_path / "n", control=tmp_path / "c")
    daemon = ExportDaemon({"d": disk})
    await daemon.start(paths)
    yield Site(daemon, paths, disk)
    await daemon.close()
    assert list(tmp_path.iterdir()) == []


async def test_status(site):
    async with site.control() as control:
        described = {
            "size": SIZE,
            "sector_size": 512,
            "read_only": False,
            "tracking": False,
            "tracked": False,
            "block_size": 0,
        }
        assert await control.ask("status") == {"ok": True, "disks": {"d": described}}
        await control.ask("start", block_size=BLOCK)
        described |= {"tracking": True, "tracked": True, "block_size": BLOCK}
        assert (await control.ask("status"))["disks"] == {"d": described}


async def test_start_harvest_stop(site):
    async with site.control() as control:
        await site.write(0)
        reply = await control.ask("start", block_size=BLOCK)
        assert reply["ok"]
        assert reply["block_size"] == BLOCK
        assert await control.harvest() == (1, [])
        await site.write(BLOCK)
        assert await control.harvest(1) == (2, [(BLOCK, BLOCK)])
        assert await control.harvest(2) == (3, [])
        assert (await control.ask("drain"))["ok"]
        assert (await control.ask("stop", session=reply["session"])) == {"ok": True}
        assert (await control.ask("stop", session=reply["session"])) == {"ok": True}
        assert (await control.ask("harvest"))["code"] == "not-tracking"


async def test_an_unconfirmed_map_comes_again(site):
    async with site.control() as control:
        await control.ask("start", block_size=BLOCK)
        await site.write(0)
        assert await control.harvest(0) == (1, [(0, BLOCK)])
        await site.write(4 * BLOCK)
        assert await control.harvest(0) == (2, [(0, BLOCK), (4 * BLOCK, BLOCK)])
        assert await control.harvest(1) == (3, [(0, BLOCK), (4 * BLOCK, BLOCK)])
        assert (await control.ask("ack", confirm=3))["ok"]
        assert await control.harvest(0) == (4, [])


async def test_a_lost_tracker_loses_nothing(site):
    async with site.control() as control:
        session = (await control.ask("start", block_size=BLOCK))["session"]
        await site.write(0)
        await control.harvest()
    await site.orphaned()
    await site.write(2 * BLOCK)
    async with site.control() as control:
        assert (await control.ask("harvest"))["code"] == "not-tracking"
        assert (await control.ask("attach", session="other"))["code"] == "not-tracking"
        assert (await control.ask("attach", session=session))["block_size"] == BLOCK
        assert (await control.harvest(7))[1] == [(0, BLOCK), (2 * BLOCK, BLOCK)]


async def test_a_start_that_nobody_may_know_of_is_undone(site):
    async with site.control() as control:
        await control.ask("start", block_size=BLOCK)
    await site.orphaned()
    assert not site.daemon._disks["d"].tracking


async def test_a_session_may_be_taken_over_before_its_connection_is_known_to_be_dead(site):
    async with site.control() as first, site.control() as second:
        session = (await first.ask("start", block_size=BLOCK))["session"]
        await site.write(0)
        await first.harvest()
        assert (await second.ask("attach", session=session))["ok"]
        assert (await first.ask("harvest"))["code"] == "not-tracking"
        first.writer.transport.abort()
        assert (await second.harvest())[1] == [(0, BLOCK)]
    async with site.control() as third:
        assert (await third.ask("stop", session=session))["ok"]
        assert not site.daemon._disks["d"].tracking


async def test_one_tracker_at_a_time(site):
    async with site.control() as first, site.control() as second:
        session = (await first.ask("start", block_size=BLOCK))["session"]
        await first.ask("ack")
        for op in ("start", "stop"):
            reply = await second.ask(op, block_size=BLOCK)
            assert reply["code"] == "busy"
            assert "another migration" in reply["error"]
        assert (await second.ask("attach", session="x"))["code"] == "not-tracking"
        assert (await second.ask("harvest"))["code"] == "not-tracking"
        assert (await first.ask("start", block_size=2 * BLOCK))["session"] != session
        await first.ask("ack")
        first.writer.transport.abort()
        await site.orphaned()
        assert (await second.ask("stop", session=session))["code"] == "not-tracking"
        assert (await second.ask("start", block_size=BLOCK))["ok"]


async def test_drain_reports_writes_that_do_not_end(site):
    async with site.control() as control:
        await control.ask("start", block_size=BLOCK)
        site.disk.gate.clear()
        task = asyncio.create_task(site.write(0))
        await asyncio.sleep(0)
        reply = await control.ask("drain", timeout=0.02)
        assert reply["code"] == "timeout"
        site.disk.gate.set()
        await task
        assert (await control.ask("drain"))["ok"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb({"op": "start", "disk": "d"}) + b"x",
        msgpack.packb([1]),
        msgpack.packb({"op": "explode", "disk": "d"}),
        msgpack.packb({"op": "harvest", "disk": "d", "confirm": -1}),
        msgpack.packb({"op": "drain", "disk": "d", "timeout": 1e9}),
        msgpack.packb({"op": "start", "disk": "d", "block_size": "big"}),
        msgpack.packb({"op": "start", "disk": "d", "block_size": 1000}),
        msgpack.packb({"op": "start", "disk": "d"}),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 60000,
    ],
)
async def test_a_bad_request_is_answered(site, body):
    async with site.control() as control:
        assert (await control.ask_raw(body))["code"] == "bad-request"
        reply = await control.ask("start", disk="nobody")
        assert reply["code"] == "no-disk"
        assert reply["error"].endswith("there are: d")


@pytest.mark.parametrize("sent", [b"\0\0", struct.pack(">I", 65537), b"\0\0\0\5abc"])
async def test_broken_framing_ends_the_connection(site, sent):
    async with site.control() as control:
        control.writer.write(sent)
        control.writer.write_eof()
        assert await control.reader.read(1) == b""
    async with site.control() as control:
        assert (await control.ask("status"))["ok"]


async def test_large_disks_get_larger_blocks(tmp_path, make_disk):
    disk = make_disk(SIZE)
    disk._geometry = Geometry(1 << 50, 512)
    paths = ExportPaths(socket=tmp_path / "n", control=tmp_path / "c")
    daemon = ExportDaemon({"d": disk})
    await daemon.start(paths)
    async with Site(daemon, paths, disk).control() as control:
        assert (await control.ask("start", block_size=BLOCK))["block_size"] == 1 << 20
    await daemon.close()


async def test_the_daemon_flushes_at_its_end(tmp_path, make_disk):
    disk, stop = make_disk(), asyncio.Event()
    paths = ExportPaths(socket=tmp_path / "n", control=tmp_path / "c")
    await serve_disks({"d": disk}, paths, stop=stop, ready=stop.set)
    assert disk.calls == [("flush", 0, 0)]
    assert list(tmp_path.iterdir()) == []
    disk.failure = OSError(5, "cannot")
    with pytest.raises(OSError, match="cannot"):
        await serve_disks({"d": disk}, paths, stop=stop)
    await serve_disks({"d": disk}, paths, stop=stop, read_only=True)


async def test_a_daemon_that_cannot_listen_leaves_nothing(tmp_path, make_disk):
    paths = ExportPaths(socket=tmp_path / "missing" / "n", control=tmp_path / "c")
    with pytest.raises(InputError, match="missing"):
        await ExportDaemon({"d": make_disk()}).start(paths)
    assert list(tmp_path.iterdir()) == []
