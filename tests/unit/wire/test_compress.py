from __future__ import annotations

import contextlib
import random
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vmferry.errors import ProtocolError
from vmferry.units import KIB, MIB
from vmferry.wire.compress import MAX_RAW, Codec, available, compress, decompress

RANDOM = random.Random(1).randbytes(256 * KIB)
TEXT = b"".join(b"%d: the quick brown fox jumps over the lazy dog\n" % (n * n) for n in range(5000))
PACKING = [Codec.LZ4, Codec.ZSTD]


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("data", [b"x", bytes(4096), RANDOM, TEXT])
@pytest.mark.parametrize("level", [None, 1, 9])
def test_round_trip(codec: Codec, data: bytes, level: int | None) -> None:
    for view in (data, bytearray(data), memoryview(data)):
        assert bytes(decompress(codec, compress(codec, view, level), len(data))) == data


@pytest.mark.parametrize("codec", PACKING)
def test_compresses(codec: Codec) -> None:
    assert len(compress(codec, TEXT)) < len(TEXT) / 2
    assert compress(codec, TEXT, 9) != compress(codec, TEXT)


def test_wire_values_and_order() -> None:
    assert [(codec.name, codec.value) for codec in Codec] == [("NONE", 0), ("LZ4", 1), ("ZSTD", 2)]
    assert available()[-1] is Codec.NONE


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("off_by", [-1, 1, MIB])
def test_a_wrong_length_is_refused(codec: Codec, off_by: int) -> None:
    with pytest.raises(ProtocolError):
        decompress(codec, compress(codec, TEXT), len(TEXT) + off_by)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("length", [0, -1, MAX_RAW + 1])
def test_an_impossible_length_is_refused(codec: Codec, length: int) -> None:
    with pytest.raises(ProtocolError, match="not between"):
        decompress(codec, b"whatever", length)


@pytest.mark.parametrize("codec", PACKING)
def test_cut_short_or_prolonged_is_refused(codec: Codec) -> None:
    packed = compress(codec, TEXT)
    for wrong in (packed[:-1], packed[:10], b"", packed + b"\0", packed + packed):
        with pytest.raises(ProtocolError):
            decompress(codec, wrong, len(TEXT))


def test_a_frame_that_lies_about_its_size_allocates_nothing() -> None:
    descriptor_8_bytes_single_segment = 0b11100000
    lie = struct.pack("<IBQ", 0xFD2FB528, descriptor_8_bytes_single_segment, 1 << 45)
    with pytest.raises(ProtocolError, match="announces"):
        decompress(Codec.ZSTD, lie + b"\x01\0\0", 4096)


def test_a_frame_without_its_size_is_refused() -> None:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    with pytest.raises(ProtocolError, match="announces"):
        decompress(Codec.ZSTD, packed, len(TEXT))


def test_a_huge_window_is_refused() -> None:
    header = struct.pack("<IBBI", 0xFD2FB528, 0b10000000, 20 << 3, 4096)
    with pytest.raises(ProtocolError, match="window"):
        decompress(Codec.ZSTD, header + b"\x01\0\0", 4096)


def test_lz4_that_cannot_be_that_long_is_refused_before_allocating() -> None:
    with pytest.raises(ProtocolError, match="cannot stand for"):
        decompress(Codec.LZ4, b"12345", MAX_RAW)


@given(st.sampled_from(PACKING), st.binary(max_size=200), st.integers(1, 100_000))
def test_noise_is_refused_or_has_the_length(codec: Codec, noise: bytes, length: int) -> None:
    with contextlib.suppress(ProtocolError):
        assert len(decompress(codec, noise, length)) == length
