from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vmferry.errors import ProtocolError
from vmferry.units import KIB, MIB
from vmferry.wire.compress import MAX_RAW, Codec, Sampler, available, compress, decompress

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


# -- the sampler


class Clock:
    """Each reading is a fixed time later than the one before: the cost of one compression."""

    def __init__(self, costs: Iterator[float]) -> None:
        self.now, self.costs, self.running = 0.0, costs, False

    def __call__(self) -> float:
        if self.running:
            self.now += next(self.costs)
        self.running = not self.running
        return self.now


def costs(zstd: float, lz4: float) -> Clock:
    """A clock on which 64 KiB take so long, in seconds."""

    def forever() -> Iterator[float]:
        while True:
            yield zstd
            yield lz4

    return Clock(forever())


def settle(sampler: Sampler, data: bytes, rate: float, extents: int = 400) -> Codec:
    for _ in range(extents):
        sampler.choose(data, rate)
    return sampler.codec


SLOW_CPU = 64 * KIB / (100 * MIB)
FAST_CPU = 64 * KIB / (2000 * MIB)


def test_random_data_ends_up_uncompressed_with_rare_samples() -> None:
    clock = costs(SLOW_CPU, FAST_CPU)
    sampler = Sampler(clock=clock)
    assert settle(sampler, RANDOM, 10 * MIB, 1000) is Codec.NONE
    before = clock.now
    settle(sampler, RANDOM, 10 * MIB, 1000)
    samples = (clock.now - before) / (SLOW_CPU + FAST_CPU)
    assert round(samples) <= 2


def test_data_that_begins_to_shrink_is_noticed() -> None:
    sampler = Sampler(clock=costs(SLOW_CPU, FAST_CPU))
    assert settle(sampler, RANDOM, 10 * MIB, 5000) is Codec.NONE
    assert settle(sampler, TEXT, 10 * MIB, 5000) is Codec.ZSTD


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(10 * MIB, Codec.ZSTD), (400 * MIB, Codec.LZ4), (5000 * MIB, Codec.NONE)],
)
def test_the_faster_the_link_the_less_is_compressed(rate: float, expected: Codec) -> None:
    sampler = Sampler(clock=costs(SLOW_CPU, FAST_CPU))
    assert settle(sampler, TEXT, rate) is expected


def test_more_threads_make_compression_pay_longer() -> None:
    assert settle(Sampler(clock=costs(SLOW_CPU, 1.0)), TEXT, 200 * MIB) is Codec.NONE
    assert settle(Sampler(clock=costs(SLOW_CPU, 1.0), threads=8), TEXT, 200 * MIB) is Codec.ZSTD


def test_without_a_clock_the_data_alone_decides() -> None:
    assert settle(Sampler(), TEXT, 0) is Codec.ZSTD
    assert settle(Sampler(), TEXT, 1e12) is Codec.ZSTD
    assert settle(Sampler(), RANDOM, 0) is Codec.NONE


def test_a_rate_held_up_by_compressing_is_not_taken_for_the_link() -> None:
    sampler = Sampler([Codec.ZSTD], costs(SLOW_CPU, SLOW_CPU))
    assert settle(sampler, TEXT, 1000 * MIB) is Codec.NONE
    assert settle(sampler, TEXT, 20 * MIB) is Codec.ZSTD  # the link became slow
    ratio = len(compress(Codec.ZSTD, TEXT[: Sampler.SAMPLE])) / Sampler.SAMPLE
    held_up = ratio * 100 * MIB
    assert settle(sampler, TEXT, held_up) is Codec.ZSTD
    assert settle(sampler, TEXT, held_up * 1.5) in (Codec.ZSTD, Codec.NONE)
    assert settle(sampler, TEXT, 2000 * MIB) is Codec.NONE


def test_near_equals_do_not_take_turns() -> None:
    rng = random.Random(3)
    sampler = Sampler([Codec.LZ4], costs(FAST_CPU, FAST_CPU), every=1)
    chosen = [sampler.choose(TEXT, 1900 * MIB * rng.uniform(0.97, 1.03)) for _ in range(500)]
    assert len(set(chosen[50:])) == 1


def test_small_extents_and_codecs_nobody_speaks() -> None:
    assert Sampler().choose(TEXT[:100], 0) is Codec.NONE
    assert settle(Sampler([Codec.NONE]), TEXT, 0) is Codec.NONE
    assert settle(Sampler([Codec.LZ4]), TEXT, 0) is Codec.LZ4
