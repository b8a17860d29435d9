"""Judges while data flows which codec brings it over soonest, by samples of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vmferry.units import KIB
from vmferry.wire.compress import Buffer, Codec, compress
from vmferry.wire.flow import Flow

__all__ = ["SAMPLE", "Sampler", "StreamSampler"]

SAMPLE = 64 * KIB
"""Bytes that every codec compresses, now and then."""
_SMALLEST = 4 * KIB
_CLEARLY = 0.9
_EVERY = 16
"""Pieces between two samples."""
_RAREST = 32
_RAREST_OF_STREAM = 8
_WEIGHT = 0.4


class _Samples:
    """What each codec makes of the data, the last samples weighing most.

    Data that does not shrink is looked at ever more rarely.
    """

    def __init__(
        self,
        codecs: Iterable[Codec],
        clock: Callable[[], float] | None,
        threads: int,
        every: int,
        rarest: int,
    ) -> None:
        self._rarest = rarest
        self.codecs = [codec for codec in dict.fromkeys(codecs) if codec is not Codec.NONE]
        self._clock, self._threads, self._every = clock, threads, every
        self._seen: dict[Codec, tuple[float, float]] = {}
        self._until_next, self._rarely = 0, 1

    def take(self, data: Buffer) -> bool:
        """Whether a sample was due, and was taken of ``data``."""
        if self._until_next:
            self._until_next -= 1
            return False
        self._take(memoryview(data)[:SAMPLE])
        self._until_next = self._every * self._rarely - 1
        return True

    def _take(self, sample: memoryview) -> None:
        shrinks = False
        for codec in self.codecs:
            begun = self._clock() if self._clock else 0.0
            ratio = len(compress(codec, sample)) / len(sample)
            cost = (self._clock() - begun if self._clock else 0.0) / len(sample) / self._threads
            before = self._seen.get(codec, (ratio, cost))
            self._seen[codec] = (
                before[0] + _WEIGHT * (ratio - before[0]),
                before[1] + _WEIGHT * (cost - before[1]),
            )
            shrinks |= self._seen[codec][0] < _CLEARLY
        self._rarely = 1 if shrinks else min(self._rarely * 2, self._rarest)

    def of(self, codec: Codec) -> tuple[float, float]:
        """Bytes that it makes of one, and the seconds that it takes to."""
        return self._seen.get(codec, (1.0, 0.0))

    def better(self, used: Codec, seconds: Callable[[Codec], float]) -> Codec:
        """The codec with the least ``seconds``, if that is clearly better than the one in use.

        One that no longer shrinks the data is given up.
        """
        if self.of(used)[0] > _CLEARLY:
            used = Codec.NONE
        best = min((Codec.NONE, *self.codecs), key=seconds)
        return best if seconds(best) < _CLEARLY * seconds(used) else used


class Sampler:
    """For extents: the next ones are compressed while one is sent.

    So a byte takes as long as the slower of the two.

    Args:
        codecs: those to choose from; not compressing is always possible.
        clock: seconds of CPU or wall time, to measure what compressing costs, for example
            ``time.perf_counter``. Without one, compressing counts as free and choices depend on
            the data alone: a simulation stays deterministic.
        threads: threads that compress at once.
        every: extents between two samples.

    Attributes:
        codec: the one in use.

    """

    def __init__(
        self,
        codecs: Iterable[Codec] = (Codec.ZSTD, Codec.LZ4),
        clock: Callable[[], float] | None = None,
        *,
        threads: int = 1,
        every: int = _EVERY,
    ) -> None:
        self._samples = _Samples(codecs, clock, threads, every, _RAREST)
        self._capacity = 0.0
        self.codec = Codec.NONE

    def choose(self, data: Buffer, rate: float) -> Codec:
        """The codec for this extent.

        Args:
            data: the extent. Its first 64 KiB are compressed if a sample is due.
            rate: payload bytes per second that go over the link; 0 if not known yet.

        """
        if not self._samples.codecs or len(data) < _SMALLEST:
            return Codec.NONE
        if self._samples.take(data):
            self._note_rate(rate)
            self.codec = self._samples.better(self.codec, self._seconds)
        return self.codec

    def _note_rate(self, rate: float) -> None:
        """Learn what the link takes.

        What goes over it says so only if it was the bottleneck: while compressing is, the link may
        take more than is seen.
        """
        ratio, cost = self._samples.of(self.codec)
        held_up = bool(rate) and cost > 0 and rate >= _CLEARLY * ratio / cost
        if not self._capacity or (held_up and rate > self._capacity):
            self._capacity = rate
        elif rate and not held_up:
            self._capacity += _WEIGHT * (rate - self._capacity)

    def _seconds(self, codec: Codec) -> float:
        """Seconds per byte; in units of sending one while the link's rate is not known."""
        ratio, cost = self._samples.of(codec)
        return max(cost, ratio / self._capacity) if self._capacity else ratio


class StreamSampler:
    """For a stream: the link carries one piece while the next is compressed.

    So a byte takes as long as the link needs for it, or as all else that is done to it. Nothing is
    compressed for a receiver that cannot take more than comes: it would have to unpack it besides.

    Args:
        codecs, clock: as for ``Sampler``.

    Attributes:
        codec: the one in use.

    """

    def __init__(
        self,
        codecs: Iterable[Codec] = (Codec.ZSTD, Codec.LZ4),
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._samples = _Samples(codecs, clock, 1, _EVERY, _RAREST_OF_STREAM)
        self.codec = Codec.NONE

    def choose(self, data: Buffer, flow: Flow) -> Codec:
        """The codec for this piece.

        Args:
            data: the piece. Its first 64 KiB are compressed if a sample is due.
            flow: what is seen of the stream so far.

        """
        capacity = flow.capacity
        if not capacity or not self._samples.codecs or len(data) < _SMALLEST:
            return Codec.NONE
        if flow.sated or (self.codec is Codec.NONE and not flow.starving):
            self.codec = Codec.NONE
            return self.codec
        self._samples.take(data)

        def seconds(codec: Codec) -> float:
            ratio, cost = self._samples.of(codec)
            return max(cost + flow.besides, ratio / capacity)

        self.codec = self._samples.better(self.codec, seconds)
        return self.codec
