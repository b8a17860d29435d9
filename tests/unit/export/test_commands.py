from __future__ import annotations

import errno
import struct

import pytest

from vmferry.errors import VolumeError

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE = 1, 2, 4, 8
MIB = 1 << 20


@pytest.mark.parametrize("structured", [False, True])
async def test_every_command(serve, make_disk, structured):
    disk = make_disk()
    async with serve({"d": disk}) as bench, bench.client() as client:
        await client.enter(structured=structured)

        async def succeeded():
            return (await client.error()) == 0 if structured else (await client.simple())[0] == 0

        before = bytes(disk.bytes)
        client.request(READ, 512, 1024)
        if structured:
            [chunk] = await client.chunks()
            assert (chunk.kind, chunk.data) == (1, struct.pack(">Q", 512) + before[512:1536])
        else:
            assert await client.simple() == (0, 1)
            assert await client.reader.readexactly(1024) == before[512:1536]
        client.request(WRITE, 4096, 512, data=b"w" * 512)
        assert await succeeded()
        client.request(ZEROES, 8192, 1024)
        assert await succeeded()
        client.request(ZEROES, 12288, 512, flags=NO_HOLE)
        assert await succeeded()
        client.request(TRIM, 16384, 4096)
        assert await succeeded()
        client.request(FLUSH)
        assert await succeeded()
        assert disk.calls == [
            ("read", 512, 1024),
            ("write", 4096, 512),
            ("zero+unmap", 8192, 1024),
            ("zero", 12288, 512),
            ("discard", 16384, 4096),
            ("flush", 0, 0),
        ]
        assert disk.bytes[4096:4608] == b"w" * 512
        client.request(DISC)
        assert await client.gone()


@pytest.mark.parametrize(("kind", "data"), [(WRITE, bytes(512)), (TRIM, b""), (ZEROES, b"")])
async def test_fua_flushes_before_the_reply(serve, make_disk, kind, data):
    disk = make_disk()
    async with serve({"d": disk}) as bench, bench.client() as client:
        await client.enter()
        client.request(kind, 0, 512, flags=FUA, data=data)
        assert await client.simple() == (0, 1)
        assert [call[0] for call in disk.calls][1:] == ["flush"]


@pytest.mark.parametrize(
    ("kind", "offset", "length", "flags", "error"),
    [
        (READ, MIB - 512, 1024, 0, errno.EINVAL),
        (READ, 1 << 63, 512, 0, errno.EINVAL),
        (READ, 0, 0, 0, errno.EINVAL),
        (READ, 1, 512, 0, errno.EINVAL),
        (READ, 0, 513, 0, errno.EINVAL),
        (READ, 0, 0xFFFFFE00, 0, errno.EINVAL),
        (READ, 0, 512, FUA, errno.EINVAL),
        (WRITE, MIB, 512, 0, errno.ENOSPC),
        (WRITE, 0, 512, NO_HOLE, errno.EINVAL),
        (WRITE, 0, (32 << 20) + 512, 0, errno.EINVAL),
        (TRIM, MIB - 512, 0xFFFFFE00, 0, errno.ENOSPC),
        (ZEROES, MIB, 512, 0, errno.ENOSPC),
        (ZEROES, 0, 512, 16, errno.EINVAL),
        (STATUS, 0, 0, 0, errno.EINVAL),
        (STATUS, MIB, 512, 0, errno.EINVAL),
        (CACHE, 0, 512, 0, errno.EINVAL),
        (77, 0, 512, 0, errno.EINVAL),
    ],
)
async def test_a_wrong_request_gets_an_error_and_nothing_else_happens(
    serve, make_disk, kind, offset, length, flags, error
):
    disk = make_disk()
    async with serve({"d": disk}) as bench, bench.client() as client:
        await client.enter(structured=True, meta=True)
        data = bytes(length) if kind == WRITE else b""
        client.request(kind, offset, length, flags=flags, data=data)
        assert await client.error() == error
        assert disk.calls == []
        client.request(FLUSH)
        assert await client.error() == 0


async def test_df_needs_structured_replies(serve, make_disk):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.enter()
        client.request(READ, 0, 512, flags=DF)
        assert await client.simple() == (errno.EINVAL, 1)


@pytest.mark.parametrize("kind", [WRITE, TRIM, ZEROES])
async def test_a_read_only_export_refuses_changes(serve, make_disk, kind):
    disk = make_disk()
    async with serve({"d": disk}, read_only=True) as bench, bench.client() as client:
        await client.enter()
        client.request(kind, 0, 512, data=bytes(512) if kind == WRITE else b"")
        assert await client.simple() == (errno.EPERM, 1)
        client.request(FLUSH)
        assert await client.simple() == (0, 2)
        assert disk.calls == []


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (OSError(errno.EIO, "broken"), 5),
        (OSError(errno.ENOSPC, "full"), 28),
        (OSError(errno.EDQUOT, "quota"), 28),
        (OSError(errno.EROFS, "read-only"), 1),
        (OSError(errno.ENOMEM, "memory"), 12),
        (OSError(errno.EOVERFLOW, "big"), 75),
        (OSError(errno.EOPNOTSUPP, "cannot"), 95),
        (OSError(errno.ESHUTDOWN, "going"), 108),
        (OSError(errno.ENXIO, "no number of its own"), 5),
        (OSError("without a number"), 5),
        (ValueError("range"), 22),
        (MemoryError(), 12),
        (VolumeError("broken"), 5),
        (RuntimeError("a bug"), 5),
    ],
)
async def test_failures_of_the_disk_are_replies(serve, make_disk, failure, error):
    disk = make_disk()
    disk.failure = failure
    async with serve({"d": disk}) as bench:
        async with bench.client() as client:
            await client.enter()
            client.request(WRITE, 0, 512, data=bytes(512))
            assert await client.simple() == (error, 1)
        async with bench.client() as client:
            await client.enter(structured=True)
            client.request(READ, 4096, 512)
            chunk = await client.chunk()
            assert (chunk.kind, chunk.flags) == (0x8002, 1)
            assert struct.unpack_from(">I", chunk.data)[0] == error
            assert chunk.data.endswith(struct.pack(">Q", 4096))
            disk.failure = None
            client.request(FLUSH)
            assert await client.error() == 0


async def test_a_large_read_sends_holes_as_holes(serve, make_holey_disk):
    disk = make_holey_disk()
    async with serve({"d": disk}) as bench, bench.client() as client:
        await client.enter(structured=True)
        client.request(READ, 32768, MIB - 65536)
        image, holes = bytearray(b"?" * MIB), 0
        for chunk in await client.chunks():
            (offset,) = struct.unpack_from(">Q", chunk.data)
            body = chunk.data[8:]
            if chunk.kind == 2:
                holes += 1
                body = bytes(struct.unpack(">I", body)[0])
            image[offset : offset + len(body)] = body
        assert image[32768 : MIB - 32768] == disk.bytes[32768 : MIB - 32768]
        assert image[:32768] == b"?" * 32768 == image[MIB - 32768 :]
        assert holes == 8


async def test_df_and_simple_replies_get_one_piece(serve, make_holey_disk):
    disk = make_holey_disk()
    async with serve({"d": disk}) as bench:
        async with bench.client() as client:
            await client.enter(structured=True)
            client.request(READ, 0, MIB, flags=DF)
            [chunk] = await client.chunks()
            assert chunk.data[8:] == disk.bytes
        async with bench.client() as client:
            await client.enter()
            client.request(READ, 0, MIB)
            assert await client.simple() == (0, 1)
            assert await client.reader.readexactly(MIB) == disk.bytes


def states(chunk):
    assert (chunk.kind, chunk.flags, chunk.data[:4]) == (5, 1, b"\0\0\0\1")
    return list(struct.iter_unpack(">II", chunk.data[4:]))


async def test_block_status(serve, make_holey_disk):
    async with serve({"d": make_holey_disk()}) as bench, bench.client() as client:
        await client.enter(structured=True, meta=True)
        client.request(STATUS, 0, 4 * 65536)
        found = states(await client.chunk())
        assert found == [(65536, 3), (65536, 0), (65536, 2), (65536, 0)]
        client.request(STATUS, 4096, MIB - 4096, flags=REQ_ONE)
        assert states(await client.chunk()) == [(65536 - 4096, 3)]


async def test_block_status_of_a_disk_without_a_map_is_data(serve, make_disk):
    async with serve({"d": make_disk()}) as bench, bench.client() as client:
        await client.enter(structured=True, meta=True)
        client.request(STATUS, 512, MIB - 512)
        assert states(await client.chunk()) == [(MIB - 512, 0)]
