from __future__ import annotations

import asyncio
import os
import socket
import stat
import time

import pytest

from vmferry.api import Geometry
from vmferry.errors import InputError, VolumeGeometry
from vmferry.export.exporter import NbdExporter
from vmferry.export.nbd import Limits, NbdServer

READ, WRITE, DISC, FLUSH = range(4)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_replies_come_in_the_order_of_completion(serve, make_disk):
    disk = make_disk()
    disk.gate.clear()
    async with serve({"d": disk, "fast": make_disk()}) as bench, bench.client() as client:
        await client.enter()
        slow = client.request(READ, 0, 512)
        await until(lambda: disk.calls)
        held, disk.gate = disk.gate, asyncio.Event()
        disk.gate.set()
        quick = client.request(FLUSH)
        assert await client.simple() == (0, quick)
        held.set()
        assert await client.simple() == (0, slow)


async def test_requests_and_bytes_under_way_are_bounded(serve, make_disk):
    disk = make_disk()
    disk.gate.clear()
    limits = Limits(requests=8, bytes=4 * 65536)
    async with serve({"d": disk}, limits=limits) as bench, bench.client() as client:
        await client.enter()
        for _ in range(20):
            client.request(FLUSH)
        await asyncio.sleep(0.05)
        assert len(disk.calls) == 8
        disk.gate.set()
        assert [(await client.simple())[0] for _ in range(20)] == [0] * 20
        disk.gate.clear()
        disk.calls.clear()
        for _ in range(8):
            client.request(READ, 0, 65536)
        await asyncio.sleep(0.05)
        assert len(disk.calls) == 4
        disk.gate.set()
        for _ in range(8):
            assert (await client.simple())[0] == 0
            await client.reader.readexactly(65536)


async def test_a_client_that_does_not_read_stops_being_served(serve, make_disk):
    disk = make_disk(64 << 20)
    limits = Limits(bytes=8 << 20, grace=0.1)
    async with serve({"d": disk}, limits=limits) as bench, bench.client() as client:
        await client.enter()
        client.reader._transport.pause_reading()
        for _ in range(64):
            client.request(READ, 0, 1 << 20)
        await asyncio.sleep(0.2)
        assert 8 <= len(disk.calls) <= 32
        async with asyncio.timeout(60):
            await bench.server.remove("d")


async def test_a_lone_request_above_the_bound_is_served(serve, make_disk):
    limits = Limits(bytes=4096)
    async with serve({"d": make_disk()}, limits=limits) as bench, bench.client() as client:
        await client.enter()
        client.request(READ, 0, 1 << 20)
        assert (await client.simple())[0] == 0


async def test_remove_answers_what_is_under_way_then_drops_the_clients(serve, make_disk):
    disk = make_disk()
    async with serve({"d": disk, "e": make_disk()}) as bench:
        async with bench.client() as client, bench.client() as other:
            await client.enter()
            await other.enter("e")
            disk.gate.clear()
            cookie = client.request(WRITE, 0, 512, data=b"x" * 512)
            await until(lambda: disk.calls)
            removing = asyncio.create_task(bench.server.remove("d"))
            await asyncio.sleep(0.02)
            assert not removing.done()
            disk.gate.set()
            assert await client.simple() == (0, cookie)
            assert await client.gone()
            await removing
            await bench.server.remove("d")
            other.request(FLUSH)
            assert await other.simple() == (0, 1)
        async with bench.client() as late:
            await late.greet()
            assert (await late.go("d"))[-1].kind == 0x80000006


async def test_remove_gives_up_after_the_grace_period(serve, make_disk):
    disk = make_disk()
    async with serve({"d": disk}, limits=Limits(grace=0.05)) as bench, bench.client() as client:
        await client.enter()
        disk.gate.clear()
        client.request(WRITE, 0, 512, data=bytes(512))
        await until(lambda: disk.calls)
        async with asyncio.timeout(60):
            await bench.server.remove("d")
        assert await client.gone()


async def test_writes_of_a_lost_client_end_before_the_next_client_is_served(serve, make_disk):
    disk = make_disk()
    async with serve({"d": disk}) as bench:
        async with bench.client() as first:
            await first.enter()
            disk.gate.clear()
            first.request(WRITE, 0, 512, data=b"1" * 512)
            await until(lambda: disk.calls)
        held, disk.gate = disk.gate, asyncio.Event()
        disk.gate.set()
        async with bench.client() as second:
            await second.enter()
            second.request(WRITE, 0, 512, data=b"2" * 512)
            await asyncio.sleep(0.05)
            assert len(disk.calls) == 1
            held.set()
            assert await second.simple() == (0, 1)
        assert disk.bytes[:512] == b"2" * 512


async def test_reads_of_a_lost_client_are_given_up(serve, make_disk):
    disk = make_disk()
    async with serve({"d": disk}) as bench:
        async with bench.client() as first:
            await first.enter()
            disk.gate.clear()
            first.request(READ, 0, 512)
            await until(lambda: disk.calls)
        await until(lambda: not bench.server._connections)


async def test_disc_lets_requests_finish(serve, make_disk):
    disk = make_disk()
    async with serve({"d": disk}) as bench, bench.client() as client:
        await client.enter()
        disk.gate.clear()
        cookie = client.request(WRITE, 0, 512, data=b"x" * 512)
        client.request(DISC)
        await until(lambda: disk.calls)
        disk.gate.set()
        assert await client.simple() == (0, cookie)
        assert await client.gone()


async def test_settle_waits_for_what_was_sent(serve, make_disk):
    disk = make_disk()
    async with serve({"d": disk}) as bench, bench.client() as client:
        await client.enter()
        disk.gate.clear()
        for number in range(200):  # more than are read at once
            client.request(WRITE, 512 * number, 512, data=b"s" * 512)
        await client.writer.drain()
        settling = asyncio.create_task(bench.server.settle("d"))
        await asyncio.sleep(0.05)
        assert not settling.done()
        disk.gate.set()
        await settling
        assert disk.bytes[: 200 * 512] == b"s" * 200 * 512


async def test_settle_sees_a_request_that_arrives_with_its_own_alarm(serve, make_disk):
    disk = make_disk()
    async with serve({"d": disk}) as bench, bench.client() as client:
        await client.enter()
        disk.gate.clear()
        settling = asyncio.create_task(bench.server.settle("d"))
        await asyncio.sleep(0)
        client.request(WRITE, 0, 512, data=bytes(512))
        time.sleep(0.005)  # noqa: ASYNC251 - so that both are due in one turn of the loop
        await asyncio.sleep(0.05)
        assert not settling.done()
        disk.gate.set()
        await settling


async def test_settle_does_not_wait_for_half_a_request(serve, make_disk):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.enter()
        client.request(WRITE, 0, 4096, data=bytes(100))
        await client.writer.drain()
        async with asyncio.timeout(60):
            await bench.server.settle("d")
            await bench.server.settle("unknown")


async def test_the_socket_has_its_mode_and_goes_away(tmp_path, make_disk):
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        server = NbdServer({"d": make_disk()})
        await server.start_unix(path, mode=0o660)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    await server.close()
    assert not path.exists()
    await server.close()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path, make_disk):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with NbdServer({"d": make_disk()}) as server, NbdServer() as second:
        await server.start_unix(path)
        with pytest.raises(InputError, match="another process listens"):
            await second.start_unix(path)
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await reader.readexactly(8) == b"NBDMAGIC"
        writer.close()
        await writer.wait_closed()


async def test_close_leaves_somebody_elses_socket_alone(tmp_path, make_disk):
    path = tmp_path / "s"
    server = NbdServer({"d": make_disk()})
    await server.start_unix(path)
    path.unlink()
    async with NbdServer() as other:
        await other.start_unix(path)
        await server.close()
        assert path.exists()


@pytest.mark.parametrize("path", ["file", "missing/s", "long" * 40])
async def test_a_path_that_cannot_be_used(tmp_path, path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError):
        await NbdServer().start_unix(tmp_path / path)
    assert (tmp_path / "file").read_text() == "precious"


async def test_tcp_is_loopback_only(make_disk):
    async with NbdServer({"d": make_disk()}) as server:
        host, port = await server.start_tcp()
        reader, writer = await asyncio.open_connection(host, port)
        assert await reader.readexactly(8) == b"NBDMAGIC"
        writer.close()
        await writer.wait_closed()
        with pytest.raises(InputError, match="served on 127"):
            await server.start_tcp("0.0.0.0")


async def test_names_and_geometries_that_cannot_be_served(make_disk):
    server = NbdServer({"d": make_disk()})
    with pytest.raises(InputError, match="already"):
        server.add("d", make_disk())
    with pytest.raises(InputError, match="4096"):
        server.add("n" * 4097, make_disk())
    odd = make_disk()
    odd._geometry = Geometry(1 << 20, 520)
    with pytest.raises(VolumeGeometry):
        server.add("odd", odd)


async def test_exporter(tmp_path, make_disk):
    async with NbdExporter(tmp_path) as exporter:
        url = await exporter.expose("vm/disk 0", make_disk())
        assert url == f"nbd+unix:///vm%2Fdisk%200?socket={tmp_path}/nbd.sock"
        other = await exporter.expose("e", make_disk())
        assert (tmp_path / "nbd.sock").exists()
        await exporter.withdraw(url)
        await exporter.withdraw(url)
        await exporter.withdraw(other)
        assert not (tmp_path / "nbd.sock").exists()
        await exporter.withdraw(other)
        assert await exporter.expose("e", make_disk()) == other
    assert not (tmp_path / "nbd.sock").exists()
