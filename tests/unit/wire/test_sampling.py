from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from vmferry.units import KIB, MIB
from vmferry.wire.compress import Codec, compress
from vmferry.wire.flow import Flow
from vmferry.wire.sampling import SAMPLE, Sampler, StreamSampler

RANDOM = random.Random(1).randbytes(256 * KIB)
TEXT = b"".join(b"%d: the quick brown fox jumps over the lazy dog\n" % (n * n) for n in range(5000))


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


def test_data_that_no_longer_shrinks_goes_as_it_is() -> None:
    sampler = Sampler(clock=costs(SLOW_CPU, FAST_CPU))
    assert settle(sampler, TEXT, 10 * MIB) is Codec.ZSTD
    assert settle(sampler, RANDOM, 10 * MIB) is Codec.NONE


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
    ratio = len(compress(Codec.ZSTD, TEXT[:SAMPLE])) / SAMPLE
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


def flow_of(capacity: float, *, idle: int = 100, besides: float = 0.0) -> Flow:
    """A stream whose link takes so much, and whose receiver waits for so many percent."""
    flow = Flow()
    for _ in range(100):
        seconds = MIB / capacity
        busy = MIB * besides
        flow.went(MIB, MIB, elapsed=seconds + busy, packing=0.0, blocked=seconds)
        flow.heard(idle)
    return flow


def settled(sampler: StreamSampler, data: bytes, flow: Flow) -> Codec:
    for _ in range(400):
        sampler.choose(data, flow)
    return sampler.codec


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(10 * MIB, Codec.ZSTD), (400 * MIB, Codec.LZ4), (5000 * MIB, Codec.NONE)],
)
def test_the_faster_the_link_the_less_of_a_stream_is_compressed(
    rate: float, expected: Codec
) -> None:
    stream = StreamSampler(clock=costs(SLOW_CPU, FAST_CPU))
    assert settled(stream, TEXT, flow_of(rate)) is expected


def test_the_link_carries_one_piece_of_a_stream_while_the_next_is_compressed() -> None:
    stream = StreamSampler([Codec.ZSTD], costs(SLOW_CPU, SLOW_CPU))  # at 100 MiB/s
    assert settled(stream, TEXT, flow_of(85 * MIB)) is Codec.ZSTD


def test_what_else_a_piece_takes_counts_beside_compressing() -> None:
    stream = StreamSampler([Codec.ZSTD], costs(SLOW_CPU, SLOW_CPU))
    assert settled(stream, TEXT, flow_of(108 * MIB, besides=1 / (400 * MIB))) is Codec.NONE


def test_nothing_is_compressed_for_a_receiver_that_takes_no_more() -> None:
    stream = StreamSampler([Codec.LZ4], costs(FAST_CPU, FAST_CPU))
    assert settled(stream, TEXT, flow_of(20 * MIB, idle=30)) is Codec.NONE
    assert settled(stream, TEXT, flow_of(20 * MIB, idle=80)) is Codec.LZ4
    assert settled(stream, TEXT, flow_of(20 * MIB, idle=30)) is Codec.LZ4
    assert settled(stream, TEXT, flow_of(20 * MIB, idle=0)) is Codec.NONE


def test_a_stream_whose_link_is_not_known_goes_as_it_is() -> None:
    stream = StreamSampler(clock=costs(SLOW_CPU, FAST_CPU))
    assert stream.choose(TEXT, Flow()) is Codec.NONE
    known = flow_of(MIB)
    assert stream.choose(TEXT, known) is Codec.ZSTD
    assert stream.choose(TEXT[:100], known) is Codec.NONE


def test_a_stream_that_no_longer_shrinks_goes_as_it_is() -> None:
    stream = StreamSampler(clock=costs(SLOW_CPU, FAST_CPU))
    assert settled(stream, TEXT, flow_of(20 * MIB)) is not Codec.NONE
    assert settled(stream, RANDOM, flow_of(20 * MIB)) is Codec.NONE


def test_a_stream_that_begins_to_shrink_is_noticed_before_its_end() -> None:
    stream = StreamSampler(clock=costs(SLOW_CPU, FAST_CPU))
    flow = flow_of(20 * MIB)
    assert settled(stream, RANDOM, flow) is Codec.NONE
    chosen = [stream.choose(TEXT, flow) for _ in range(256)]  # 128 MiB
    assert chosen[-1] is not Codec.NONE
