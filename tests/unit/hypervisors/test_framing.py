"""The memory stream against what a hostile or broken peer may send."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.errors import ConnectionLost, DigestMismatch, ProtocolError, VmferryError
from vmferry.testing.streams import stream_pair
from vmferry_hypervisors.process.arrival import ProcessArrival
from vmferry_hypervisors.process.folder import GuestFolder
from vmferry_hypervisors.process.framing import (
    FinalState,
    FrameType,
    Hello,
    pack,
    pack_numbers,
    read_frame,
)
from vmferry_hypervisors.process.layout import PAGE, Registers
from vmferry_hypervisors.process.memory import GuestMemory, create_memory
from vmferry_hypervisors.process.options import ProcessOptions

SIZE = 64 * PAGE


class Fixed:
    """A stream that holds some bytes, and notes the largest piece it was asked for."""

    def __init__(self, data):
        self.data, self.largest = data, 0

    async def read(self, limit=1 << 20):
        self.largest = max(self.largest, limit)
        piece, self.data = self.data[:limit], self.data[limit:]
        return piece


def hello(memory=SIZE, page=PAGE):
    return pack(FrameType.HELLO, 0, msgspec.json.encode(Hello(memory, page)))


def pages(*numbers, contents=b"\x01"):
    listed = pack_numbers(np.array(numbers, dtype=np.int64))
    return pack(FrameType.PAGES, len(numbers), listed, contents * PAGE * len(numbers))


def zeroes(*numbers):
    return pack(FrameType.ZEROES, len(numbers), pack_numbers(np.array(numbers, dtype=np.int64)))


@pytest.fixture
def arrival(tmp_path):
    def make(data):
        folder = GuestFolder(tmp_path, "guest")
        folder.path.mkdir()
        create_memory(folder.path, SIZE)
        return ProcessArrival(folder, Fixed(data), ProcessOptions(), fresh=True)

    return make


def final(tmp_path, digest=None):
    memory = GuestMemory(tmp_path / "guest")
    registers = bytes(memory.view[: Registers.SIZE])
    digest = memory.digest() if digest is None else digest
    memory.close()
    return pack(FrameType.STATE, 0, msgspec.json.encode(FinalState(registers, digest)))


async def test_pages_land_where_they_belong(arrival, tmp_path):
    data = hello() + pages(3, 1, contents=b"\x05") + pages(7) + zeroes(7, 8)
    arrival = arrival(data)
    with pytest.raises(ConnectionLost):
        await arrival.receive()
    memory = GuestMemory(tmp_path / "guest")
    assert memory.pages.any(axis=1).nonzero()[0].tolist() == [1, 3]
    assert (memory.bytes[PAGE : 2 * PAGE] == 5).all()
    memory.close()
    arrival._stream = Fixed(hello() + final(tmp_path))
    await arrival.receive()


async def test_other_memory_than_was_sent_is_refused(arrival, tmp_path):
    arrival = arrival(b"")
    arrival._stream = Fixed(hello() + final(tmp_path))
    await arrival.receive()
    arrival._stream = Fixed(hello() + pages(9) + final(tmp_path))
    with pytest.raises(DigestMismatch, match="memory"):
        await arrival.receive()
    arrival._stream = Fixed(hello() + pages(0) + final(tmp_path, b""))
    with pytest.raises(DigestMismatch, match="registers"):
        await arrival.receive()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + bytes(100),
        hello(memory=SIZE * 2),
        hello(page=8192),
        pages(1),
        hello() + hello(),
        hello() + pages(64),
        hello() + zeroes(1 << 31),
        pack(FrameType.HELLO, 0, b"{"),
        pack(FrameType.HELLO, 0, b'{"memory": "much", "page": 4096}'),
        hello() + pack(FrameType.STATE, 0, b"[]"),
        hello() + pack(FrameType.PAGES, 2, bytes(4 + PAGE)),
        hello() + pack(FrameType.ZEROES, 0, bytes(4)),
        hello() + pages(1).replace(b"VFPG\x01\x02", b"VFPG\x02\x02"),
        hello() + pages(1).replace(b"VFPG\x01\x02", b"VFPG\x01\x63"),
    ],
    ids=range(14),
)
async def test_what_the_protocol_does_not_allow_is_refused(arrival, data):
    with pytest.raises(ProtocolError):
        await arrival(data).receive()


@pytest.mark.parametrize("kind", FrameType)
async def test_nothing_large_is_allocated_on_a_peers_word(kind):
    frame = bytearray(pack(kind, 0))
    frame[8:12] = (0xFFFFFFFF).to_bytes(4, "big")
    frame[12:20] = (1 << 62).to_bytes(8, "big")
    stream = Fixed(bytes(frame))
    with pytest.raises(ProtocolError, match="bytes"):
        await read_frame(stream)
    assert stream.largest <= 20


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", hello(), hello() + pages(1)]))
async def test_any_bytes_end_in_one_of_our_errors(garbage, start):
    stream = Fixed(start + garbage)
    with pytest.raises(VmferryError):
        while True:
            await read_frame(stream)


async def test_stream_pair_breaks_where_it_is_told():
    one, other = stream_pair(break_after=5)
    await one.write(b"123")
    with pytest.raises(ConnectionLost):
        await one.write(b"4567")
    assert bytes(await other.read()) + bytes(await other.read()) == b"12345"
    with pytest.raises(ConnectionLost):
        await other.read()
