"""The NBD client against a server of a few lines, which does as told, right or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct

import pytest

from vmferry_support.nbd import ALLOCATION, NbdClient, NbdError, NbdLost, NbdRefused

SIZE = 1 << 20
DATA, HOLE, STATUS, ERROR = 1, 2, 5, 0x8001


def chunk(cookie, kind, payload=b"", done=True):
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, len(payload)) + payload


def simple(cookie, error=0):
    return struct.pack(">IIQ", 0x67446698, error, cookie)


def data(cookie, offset, payload, done=True):
    return chunk(cookie, DATA, struct.pack(">Q", offset) + payload, done)


def hole(cookie, offset, length, done=True):
    return chunk(cookie, HOLE, struct.pack(">QI", offset, length), done)


def failed(cookie, number, text=b"", done=True):
    return chunk(cookie, ERROR, struct.pack(">IH", number, len(text)) + text, done)


def status(cookie, *extents, context=7):
    words = b"".join(struct.pack(">II", *extent) for extent in extents)
    return chunk(cookie, STATUS, struct.pack(">I", context) + words)


class Server:
    """``reply`` gives the bytes for each (command, flags, cookie, offset, length)."""

    def __init__(self, path, reply, *, greeting=None, size=SIZE):
        self.path, self.reply, self.size, self.greeting = str(path), reply, size, greeting
        self.requests, self.payloads, self.tasks = [], [], set()

    async def __aenter__(self):
        self.server = await asyncio.start_unix_server(self.serve, self.path)
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        self.writer = writer
        try:
            await self.negotiate(reader, writer)
            while True:
                head = struct.unpack(">IHHQQI", await reader.readexactly(28))
                _, flags, command, cookie, offset, length = head
                if command == 2:
                    break
                self.requests.append((command, flags, cookie, offset, length))
                if command == 1:
                    self.payloads.append(await reader.readexactly(length))
                writer.write(self.reply(self.requests[-1]) or b"")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def negotiate(self, reader, writer):
        writer.write(
            self.greeting or struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)
        )
        await reader.readexactly(4)
        while True:
            _, option, length = struct.unpack(">QII", await reader.readexactly(16))
            asked = await reader.readexactly(length)
            replies = {
                8: [(1, b"")],
                10: [(4, struct.pack(">I", 7) + ALLOCATION.encode()), (1, b"")],
            }
            export = struct.pack(">HQH", 0, self.size, 0x6D)
            block = struct.pack(">HIII", 3, 1, 4096, 65536)
            if option == 7 and b"none" in asked:
                replies[7] = [((1 << 31) | 6, b"no export of that name")]
            else:
                replies[7] = [(3, export), (3, block), (1, b"")]
            for kind, payload in replies[option]:
                head = struct.pack(">QIII", 0x3E889045565A9, option, kind, len(payload))
                writer.write(head + payload)
            if option == 7:
                return


@pytest.fixture
async def connect(tmp_path):
    """Both ends of a connection whose server answers as told."""
    opened = []

    async def connected(reply, name="disk", **more):
        server = await Server(tmp_path / "nbd", reply, **more).__aenter__()
        opened.append(server)
        client = await NbdClient.connect(server.path, name, contexts=[ALLOCATION], timeout=30)
        opened.append(client)
        return server, client

    yield connected
    for each in reversed(opened):
        await each.__aexit__(None, None, None)


async def read(client, offset, length):
    buffer = bytearray(b"\xa5" * length)
    await client.read_into(offset, memoryview(buffer))
    return bytes(buffer)


async def test_negotiation(connect):
    _, client = await connect(lambda request: b"")
    assert (client.export.size, client.export.unit, client.export.largest) == (SIZE, 1, 65536)
    assert client.export.contexts == {ALLOCATION: 7}


async def test_chunks_in_any_order(connect):
    def reply(request):
        cookie = request[2]
        return (
            data(cookie, 2048, b"c" * 1024, False)
            + hole(cookie, 1024, 1024, False)
            + data(cookie, 0, b"a" * 1024, False)
            + chunk(cookie, 0)
        )

    _, client = await connect(reply)
    assert await read(client, 0, 3072) == b"a" * 1024 + bytes(1024) + b"c" * 1024


async def test_large_requests_are_split(connect):
    def reply(request):
        command, _, cookie, offset, length = request
        payload = struct.pack(">I", offset) * (length // 4)
        return simple(cookie) if command else data(cookie, offset, payload)

    server, client = await connect(reply)
    found = await read(client, 0, 150000)
    assert [request[3:] for request in server.requests] == [
        (0, 65536), (65536, 65536), (131072, 18928),
    ]  # fmt: skip
    assert found[131072:131076] == struct.pack(">I", 131072)
    content = bytes(range(250)) * 600
    await client.write(4, memoryview(content), fua=True)
    assert b"".join(server.payloads) == content
    assert {request[1] for request in server.requests[3:]} == {1}


async def test_answers_in_reverse(connect):
    held = []

    def reply(request):
        held.append(request)
        if len(held) < 8:
            return b""
        return b"".join(data(c, o, bytes([o >> 10]) * n) for _, _, c, o, n in reversed(held))

    _, client = await connect(reply)
    found = await asyncio.gather(*(read(client, k << 10, 1024) for k in range(8)))
    assert found == [bytes([k]) * 1024 for k in range(8)]


async def test_other_requests(connect):
    server, client = await connect(lambda request: simple(request[2]))
    await client.flush()
    await client.trim(0, 4096)
    await client.write_zeroes(0, 4096)
    await client.write_zeroes(0, 4096, unmap=False)
    assert [request[:2] for request in server.requests] == [(3, 0), (4, 0), (6, 0), (6, 2)]


async def test_status(connect):
    """Shorter than asked is gone on from; an extent that reaches too far is cut."""

    def reply(request):
        _, _, cookie, offset, _ = request
        return status(cookie, (4096, 0), (8192, 3)) if not offset else status(cookie, (1 << 30, 1))

    _, client = await connect(reply)
    found = [each async for each in client.statuses(ALLOCATION, 0, SIZE)]
    assert [(s.offset, s.lengths.tolist(), s.flags.tolist()) for s in found] == [
        (0, [4096, 8192], [0, 3]),
        (12288, [SIZE - 12288], [1]),
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_failures(connect, number):
    def reply(request):
        command, _, cookie, offset, _ = request
        if command:
            return simple(cookie, number)
        return data(cookie, offset, b"a" * 512, False) + failed(cookie, number, b"bad sector")

    _, client = await connect(reply)
    with pytest.raises(OSError, match=r"READ of 1024 bytes at 4096: .*bad sector") as failure:
        await read(client, 4096, 1024)
    assert failure.value.errno == number
    with pytest.raises(OSError, match="WRITE") as failure:
        await client.write(0, memoryview(bytes(512)))
    assert failure.value.errno == number
    assert not client.lost


NONSENSE = {
    "a reply to nobody": lambda c: simple(c + 1),
    "no magic": lambda c: bytes(16),
    "a read without data": lambda c: simple(c),
    "too few bytes": lambda c: data(c, 4096, b"a" * 512),
    "too many bytes": lambda c: data(c, 4096, b"a" * 1025),
    "before the range": lambda c: data(c, 4095, b"a" * 1024),
    "a byte twice": lambda c: data(c, 4096, b"a" * 1024, False) + data(c, 4096, b"b"),
    "a gap and a byte twice": lambda c: (
        data(c, 4096, b"a" * 512, False) + data(c, 4096, b"a" * 512)
    ),
    "a hole outside": lambda c: hole(c, 4096, 1 << 31),
    "a hole of nothing": lambda c: hole(c, 4096, 0),
    "data of no length": lambda c: chunk(c, DATA, bytes(8)),
    "a status": lambda c: status(c, (1024, 0)),
    "an unknown chunk": lambda c: chunk(c, 77, b"what"),
    "a long error": lambda c: chunk(c, ERROR, bytes(1 << 16)),
    "a short error": lambda c: chunk(c, ERROR, bytes(4)),
    "an end": lambda c: data(c, 4096, b"a" * 1024)[:500],
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_ends_the_connection(connect, what):
    def reply(request):
        server.writer.write(NONSENSE[what](request[2]))
        server.writer.write_eof()

    server, client = await connect(reply)
    with pytest.raises(NbdLost, match="NBD export 'disk' at"):
        await read(client, 4096, 1024)
    assert client.lost
    with pytest.raises(NbdLost):
        await client.flush()


@pytest.mark.parametrize(
    "extents", [[], [(0, 0)], [(0, 0), (512, 1)], [(SIZE, 0), (SIZE, 1)], [(SIZE + 1, 0), (1, 0)]]
)
async def test_a_wrong_status(connect, extents):
    _, client = await connect(lambda request: status(request[2], *extents))
    with pytest.raises(NbdLost):
        await client.status(ALLOCATION, 0, SIZE)


async def test_a_status_of_another_context(connect):
    _, client = await connect(lambda request: status(request[2], (512, 0), context=8))
    with pytest.raises(NbdLost, match="without 'base:allocation'"):
        await client.status(ALLOCATION, 0, SIZE)


async def test_a_cancelled_request_ends_with_its_reply(connect):
    held = asyncio.Event()
    server, client = await connect(lambda request: held.set())
    buffer = bytearray(1024)
    reading = asyncio.create_task(client.read_into(0, memoryview(buffer)))
    await held.wait()
    reading.cancel()
    _, waiting = await asyncio.wait([reading], timeout=0.05)
    assert waiting
    server.writer.write(data(1, 0, b"a" * 1024))
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert buffer == b"a" * 1024
    assert not client.lost


async def test_a_cancelled_read_in_pieces_ends_with_all_of_them(connect):
    asked = []
    server, client = await connect(asked.append)
    buffer = bytearray(2 * 65536)
    reading = asyncio.create_task(client.read_into(0, memoryview(buffer)))
    async with asyncio.timeout(10):
        while len(asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    reading.cancel()
    for cookie, offset in ((2, 65536), (1, 0)):
        _, waiting = await asyncio.wait([reading], timeout=0.05)
        assert waiting
        server.writer.write(data(cookie, offset, b"a" * 65536))
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert buffer == b"a" * (2 * 65536)


async def test_a_read_of_which_a_piece_fails_ends_with_all_of_them(connect):
    asked = []
    server, client = await connect(asked.append)
    reading = asyncio.create_task(read(client, 0, 2 * 65536))
    async with asyncio.timeout(10):
        while len(asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    server.writer.write(simple(1, errno.EIO))
    _, waiting = await asyncio.wait([reading], timeout=0.05)
    assert waiting
    server.writer.write(data(2, 65536, b"a" * 65536))
    with pytest.raises(OSError, match="nput/output error"):
        await reading


async def test_loss_ends_what_is_under_way(connect):
    requests = []

    def reply(request):
        requests.append(request)
        if len(requests) == 4:
            server.writer.transport.abort()

    server, client = await connect(reply)
    ended = await asyncio.gather(
        *(read(client, k, 512) for k in range(3)),
        client.write(0, memoryview(bytes(1024))),
        return_exceptions=True,
    )
    assert all(isinstance(each, NbdLost) for each in ended)


async def test_closing_ends_what_is_under_way(connect):
    _, client = await connect(lambda request: b"")
    reading = asyncio.create_task(read(client, 0, 512))
    await asyncio.sleep(0)
    await client.close()
    await client.close()
    with pytest.raises(NbdLost, match="was closed"):
        await reading


async def test_no_such_export(connect):
    with pytest.raises(NbdRefused, match=r"'none' at .*no export of that name"):
        await connect(lambda request: b"", name="none")


@pytest.mark.parametrize(
    "greeting",
    [b"SSH-2.0-OpenSSH_9.2 and more", struct.pack(">QQH", 0x4E42444D41474943, 0x420281861253, 0)],
)
async def test_no_server_of_this_protocol(connect, greeting):
    with pytest.raises(NbdLost, match="fixed newstyle"):
        await connect(lambda request: b"", greeting=greeting)


async def test_nobody_there(tmp_path):
    with pytest.raises(NbdError, match="No such file"):
        await NbdClient.connect(str(tmp_path / "nbd"), "disk")


async def test_no_answer(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "nbd"))
        silent.listen()
        with pytest.raises(NbdLost, match="no answer within"):
            await NbdClient.connect(str(tmp_path / "nbd"), "disk", timeout=0.05)
