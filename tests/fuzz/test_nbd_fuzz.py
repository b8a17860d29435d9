"""Bytes that no client sends: the server survives, the next client works, memory stays bounded."""

from __future__ import annotations

import asyncio
import os
import struct
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmferry.api import BlockIO, Geometry
from vmferry.export.nbd import Limits, NbdServer

EFFORT = int(os.environ.get("VMFERRY_EFFORT", "1"))
"""How many times the usual number of examples."""

SIZE = 1 << 20
DISK = 64 << 20
OPTION_MAGIC = 0x49484156454F5054
GREETING = struct.pack(">I", 3)
GO = struct.pack(">QIIIsH", OPTION_MAGIC, 7, 7, 1, b"d", 0)
STRUCTURED = struct.pack(">QII", OPTION_MAGIC, 8, 0)
ENTERED = 18 + 20 + 12 + 20 + 14 + 20  # greeting, export, block sizes, acknowledgement
CONTENT = bytes(range(256)) * (SIZE // 256)

fuzzed = settings(
    max_examples=60 * EFFORT,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Disk(BlockIO):
    """Refuses what the contract forbids, so that nothing wrong may get here.

    It is larger than any allowed request; only its beginning is stored.
    """

    def __init__(self) -> None:
        self.bytes = bytearray(CONTENT)

    @property
    def geometry(self) -> Geometry:
        return Geometry(DISK, 512)

    def _check(self, offset: int, length: int) -> None:
        assert 0 <= offset < offset + length <= DISK
        assert length <= 32 << 20
        assert not (offset | length) % 512

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        stored = self.bytes[offset : offset + len(buffer)]
        buffer[: len(stored)] = stored

    async def write(self, offset: int, data: memoryview) -> None:
        self._check(offset, len(data))
        data = data[: max(0, SIZE - offset)]
        self.bytes[offset : offset + len(data)] = data

    async def discard(self, offset: int, length: int) -> None:
        assert 0 <= offset < offset + length <= DISK

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        assert 0 <= offset < offset + length <= DISK

    async def flush(self) -> None:
        return


def request(kind, offset, length, flags=0, cookie=1, magic=0x25609513):
    return struct.pack(">IHHQQI", magic, flags, kind, cookie, offset, length)


async def read_all(reader):
    with suppress(ConnectionError):
        return await reader.read(64 << 20)


async def talk(path, sent):
    """Send bytes, half-close, read until the server hangs up."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(100):
            with suppress(ConnectionError):
                writer.write(sent)
                writer.write_eof()
            while await read_all(reader):
                pass
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def a_proper_client_works(path, disk):
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(GREETING + GO + request(0, 512, 1024, cookie=9))
        await reader.readexactly(ENTERED)
        assert await reader.readexactly(16) == struct.pack(">IIQ", 0x67446698, 0, 9)
        assert await reader.readexactly(1024) == disk.bytes[512:1536]
    finally:
        writer.transport.abort()
        await writer.wait_closed()


def exchange(tmp_path, sent):
    """The server survives the bytes, and reports no bug of its own."""

    async def body():
        disk = Disk()
        async with NbdServer({"d": disk}, limits=Limits(handshake=60.0)) as server:
            path = str(tmp_path / "s")
            await server.start_unix(path)
            await talk(path, sent)
            await a_proper_client_works(path, disk)

    asyncio.run(body())


@pytest.fixture(autouse=True)
def no_bug_is_logged(caplog):
    yield
    assert not [r for r in caplog.get_records("call") if r.levelname == "ERROR" or r.exc_info]


@fuzzed
@given(st.binary(max_size=4096), st.sampled_from([b"", GREETING, GREETING + GO]))
def test_random_bytes(tmp_path, noise, prefix):
    exchange(tmp_path, prefix + noise)


u32 = st.one_of(st.integers(0, 70000), st.integers(0, 0xFFFFFFFF))
u16 = st.one_of(st.integers(0, 16), st.integers(0, 0xFFFF))
u64 = st.one_of(
    st.sampled_from([0, 512, DISK - 512, DISK, DISK + 512, 1 << 63, (1 << 64) - 512]),
    st.integers(0, (1 << 64) - 1),
)
options = st.builds(
    lambda option, data, extra: struct.pack(">QII", OPTION_MAGIC, option, len(data) + extra) + data,
    st.one_of(st.integers(1, 11), u32),
    st.one_of(
        st.binary(max_size=64),
        st.builds(lambda n, rest: struct.pack(">I", n) + rest, u32, st.binary(max_size=64)),
    ),
    st.sampled_from([0, 0, 0, 1, 65537]),
)
lengths = st.one_of(st.sampled_from([0, 511, 512, 4096, 32 << 20, (32 << 20) + 512]), u32)
requests = st.builds(
    lambda kind, offset, length, flags, cookie: (
        request(kind, offset, length, flags, cookie)
        + (bytes(min(length, 8192)) if kind == 1 else b"")
    ),
    st.one_of(st.integers(0, 8), u16),
    u64,
    lengths,
    st.one_of(st.just(0), st.integers(0, 15), u16),
    u64,
)


@fuzzed
@given(st.lists(options, max_size=12))
def test_options_with_wrong_fields(tmp_path, sent):
    exchange(tmp_path, GREETING + b"".join(sent))


@fuzzed
@given(st.lists(requests, max_size=30), st.booleans())
def test_requests_with_wrong_fields(tmp_path, sent, structured):
    prefix = GREETING + (STRUCTURED if structured else b"") + GO
    exchange(tmp_path, prefix + b"".join(sent))


VALID = (
    GREETING
    + STRUCTURED
    + GO
    + b"".join(
        (
            request(0, 0, 65536),
            request(1, 4096, 512) + b"x" * 512,
            request(6, 8192, 4096),
            request(4, 0, 65536),
            request(3, 0, 0),
            request(7, 0, SIZE),
            request(2, 0, 0),
        )
    )
)


@fuzzed
@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6
    ),
    st.integers(0, len(VALID)),
)
def test_a_valid_session_with_bytes_changed_and_cut_off(tmp_path, changes, end):
    mutated = bytearray(VALID)
    for place, value in changes:
        mutated[place] = value
    exchange(tmp_path, bytes(mutated[:end] if end else mutated))


@pytest.mark.parametrize(
    "sent",
    [
        GREETING + struct.pack(">QII", OPTION_MAGIC, 99, 0xFFFFFFFF),
        GREETING + struct.pack(">QII", OPTION_MAGIC, 99, 1 << 20) + bytes(1 << 20),
        GREETING + GO + request(0, 0, 0xFFFFFFFF) * 1000,
        GREETING + GO + request(1, 0, 0xFFFFFFFF) + bytes(1 << 20),
        GREETING + GO + request(1, 0, 0xFFFFFFFF, cookie=2) + request(0, 0, SIZE) * 1000,
        GREETING + GO + request(77, 0, 512) * 10_000,
        GREETING + GO + request(0, 0, 48 << 20) * 10,
    ],
    ids=[
        "option",
        "skipped option",
        "reads",
        "write",
        "swallowed reads",
        "unknown requests",
        "large reads",
    ],
)
def test_lengths_that_lie_take_no_memory(tmp_path, sent):
    async def body():
        disk = Disk()
        async with NbdServer({"d": disk}) as server:
            path = str(tmp_path / "s")
            await server.start_unix(path)
            tracemalloc.start()
            try:
                await talk(path, sent)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            await a_proper_client_works(path, disk)
        assert peak - len(sent) < 8 << 20

    asyncio.run(body())


def test_a_client_that_reads_nothing_takes_bounded_memory(tmp_path):
    async def body():
        disk = Disk()
        limits = Limits(bytes=8 << 20, grace=0.1)
        async with NbdServer({"d": disk}, limits=limits) as server:
            path = str(tmp_path / "s")
            await server.start_unix(path)
            reader, writer = await asyncio.open_unix_connection(path)
            tracemalloc.start()
            try:
                writer.write(GREETING + GO)
                await reader.readexactly(ENTERED)
                writer.transport.pause_reading()
                writer.write(request(0, 0, SIZE) * 2000)
                async with asyncio.timeout(100):
                    while tracemalloc.get_traced_memory()[1] <= 8 << 20:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)  # it could take more
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            await a_proper_client_works(path, disk)
            writer.transport.abort()
            await writer.wait_closed()
        assert 8 << 20 < peak < 24 << 20

    asyncio.run(body())
