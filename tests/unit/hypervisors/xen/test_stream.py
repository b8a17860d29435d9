"""The header that xl puts before a domain, taken apart and put together."""

import struct

import pytest

from vmferry.errors import ProtocolError
from vmferry_hypervisors.xen.stream import GO, READY, REPORT, Header, read_header

CONFIG = b'{"c_info":{"name":"g"}}'


class Source:
    """Bytes that are read in order."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, length: int) -> bytes:
        assert len(self.data) >= length, "read beyond the header"
        piece, self.data = self.data[:length], self.data[length:]
        return piece


def saved(config: bytes = CONFIG, *, flags: int = 3, more: int = 0) -> bytes:
    """What xl writes, put together independently: magic, four numbers, length, JSON, NUL."""
    body = struct.pack("<I", len(config) + 1) + config + b"\0"
    magic = b"Xen saved domain, xl format\n \0 \r"
    return magic + struct.pack("<IIII", 0x01020304, flags, 0, len(body) + more) + body


def test_the_words_have_the_lengths_that_xl_reads() -> None:
    assert (len(READY), len(GO), len(REPORT) + 1) == (34, 44, 40)


async def test_the_header_is_read_and_nothing_beyond() -> None:
    source = Source(saved() + b"LibxlFmt")
    header = await read_header(source.read)
    assert header.config == CONFIG
    assert source.data == b"LibxlFmt"
    assert header.encode() == saved()


async def test_a_longer_configuration_has_both_lengths_right() -> None:
    header = await read_header(Source(saved()).read)
    header.config = CONFIG * 40
    assert header.encode() == saved(CONFIG * 40)
    assert (await read_header(Source(header.encode()).read)).config == CONFIG * 40


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"Y" + saved()[1:], "does not begin"),
        (saved(flags=1), "flags 0x1"),
        (saved(more=5) + bytes(5), "lengths"),
        (saved()[:44] + struct.pack("<I", 1 << 30), "bytes of configuration"),
        (saved()[:44] + struct.pack("<I", 2), "bytes of configuration"),
    ],
)
async def test_what_is_not_such_a_header_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        await read_header(Source(data).read)


def test_an_encoded_header_begins_as_xl_wants() -> None:
    assert Header(CONFIG).encode() == saved()
