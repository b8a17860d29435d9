"""Compression of payloads: the codecs, bounded against hostile input, and when it pays.

LZ4 in the block format (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md) without a
stored size, Zstandard in frames that carry it (RFC 8878). Both libraries release the GIL.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable
from typing import TypeAlias

import lz4.block  # type: ignore[import-untyped]
import zstandard

from vmferry.errors import ProtocolError
from vmferry.units import KIB, MIB

__all__ = [
    "MAX_RAW",
    "Chooser",
    "Codec",
    "Sampler",
    "available",
    "compress",
    "decompress",
    "expand",
    "shrink",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_RAW = 16 * MIB
"""Most bytes of one payload before compression."""
_LZ4_MOST = 255
"""No byte of an LZ4 block stands for more bytes than this."""
_LEAST_WINDOW = 8 * MIB
"""Window that every Zstandard decoder should support (RFC 8878, section 3.1.1.1.2)."""


class Codec(enum.IntEnum):
    """How a payload is compressed; the values are those on the wire."""

    NONE = 0
    LZ4 = 1
    ZSTD = 2


Chooser = Callable[[memoryview], Codec]
"""Decides how a piece is compressed, looking at its bytes."""

_LEVELS = {Codec.NONE: 0, Codec.LZ4: 0, Codec.ZSTD: 1}
_tools = threading.local()


def available() -> tuple[Codec, ...]:
    """The codecs there are, the one that compresses best first."""
    return (Codec.ZSTD, Codec.LZ4, Codec.NONE)


def compress(codec: Codec, data: Buffer, level: int | None = None) -> bytes:
    """``data`` compressed, which may be longer than it was.

    Args:
        codec: how.
        data: up to ``MAX_RAW`` bytes.
        level: the codec's own, Zstandard -7 to 19; for LZ4 from 3 to 12 is its slow, strong mode.
            The default is the fast one.

    """
    level = _LEVELS[codec] if level is None else level
    if codec is Codec.LZ4:
        mode = {"mode": "high_compression", "compression": level} if level >= 3 else {}
        packed: bytes = lz4.block.compress(data, store_size=False, **mode)
        return packed
    return _compressor(level).compress(data) if codec is Codec.ZSTD else bytes(data)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """The compressor of this thread: making one costs more than compressing a small piece."""
    key, made = getattr(_tools, "compressor", (None, None))
    if key != level or made is None:
        made = zstandard.ZstdCompressor(level=level, write_content_size=True)
        _tools.compressor = level, made
    return made


def decompress(codec: Codec, data: Buffer, raw_length: int) -> Buffer:
    """The ``raw_length`` bytes that ``data`` stands for; nothing about it is trusted.

    No more memory than ``raw_length`` and a window of 8 MiB is used. Without compression ``data``
    itself is returned.

    Raises:
        ProtocolError: ``data`` is damaged or stands for more or fewer bytes.

    """
    if not 0 < raw_length <= MAX_RAW:
        raise ProtocolError(f"a payload of {raw_length} bytes is not between 1 and {MAX_RAW}")
    unpack = {Codec.LZ4: _unpack_lz4, Codec.ZSTD: _unpack_zstd}.get(codec)
    raw = unpack(data, raw_length) if unpack else data
    if len(raw) != raw_length:
        raise ProtocolError(
            f"a {codec.name} payload of {len(data)} bytes stands for {len(raw)} bytes "
            f"where {raw_length} were announced"
        )
    return raw


def _unpack_lz4(data: Buffer, raw_length: int) -> bytes:
    if raw_length > len(data) * _LZ4_MOST:
        raise ProtocolError(f"{len(data)} bytes of LZ4 cannot stand for {raw_length} bytes")
    try:
        raw: bytes = lz4.block.decompress(data, uncompressed_size=raw_length)
    except lz4.block.LZ4BlockError as error:
        raise ProtocolError(f"an LZ4 payload of {len(data)} bytes is damaged: {error}") from None
    return raw


def _unpack_zstd(data: Buffer, raw_length: int) -> bytes:
    try:
        frame = zstandard.get_frame_parameters(data)
        _check_frame(frame.content_size, frame.window_size, raw_length)
        tool = zstandard.ZstdDecompressor()
        return tool.decompress(data, max_output_size=raw_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(
            f"a Zstandard payload of {len(data)} bytes is damaged: {error}"
        ) from None


def _check_frame(content: int, window: int, raw_length: int) -> None:
    if content != raw_length:
        raise ProtocolError(
            f"a Zstandard payload announces {content} bytes where {raw_length} are due"
        )
    if window > max(raw_length, _LEAST_WINDOW):
        raise ProtocolError(f"a Zstandard payload wants a window of {window} bytes")


def shrink(codec: Codec, data: memoryview | bytes) -> tuple[Codec, memoryview | bytes]:
    """``data`` compressed, and by what: as it is, by ``NONE``, if that makes it no smaller."""
    if codec is not Codec.NONE and len(packed := compress(codec, data)) < len(data):
        return codec, packed
    return Codec.NONE, data


def expand(what: str, codec: int, payload: Buffer, length: int) -> Buffer:
    """The ``length`` bytes that a message's ``payload`` stands for; nothing of it is trusted.

    Raises:
        ProtocolError: naming ``what``: the codec is not known, or the payload damaged or of another
            length.

    """
    try:
        known = Codec(codec)
    except ValueError:
        raise ProtocolError(f"{what}: codec {codec} is not known") from None
    if known is Codec.NONE and len(payload) != length:
        raise ProtocolError(f"{what}: payload of {len(payload)} bytes where length says {length}")
    return decompress(known, payload, length)


class Sampler:
    """Judges while data flows which codec brings it over soonest.

    Now and then a sample is compressed by every codec. A byte then takes as long as the slower of
    compressing and sending it, since both happen at once; the codec with the least wins, if it is
    clearly better than the one in use. Data that does not shrink is looked at ever more rarely.

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

    SAMPLE = 64 * KIB
    _SMALLEST = 4 * KIB
    _CLEARLY = 0.9
    _RAREST = 32
    _WEIGHT = 0.4

    def __init__(
        self,
        codecs: Iterable[Codec] = (Codec.ZSTD, Codec.LZ4),
        clock: Callable[[], float] | None = None,
        *,
        threads: int = 1,
        every: int = 16,
    ) -> None:
        self._codecs = [codec for codec in dict.fromkeys(codecs) if codec is not Codec.NONE]
        self._clock, self._threads, self._every = clock, threads, every
        self._seen: dict[Codec, tuple[float, float]] = {}
        self._until_next, self._rarely = 0, 1
        self._capacity = 0.0
        self.codec = Codec.NONE

    def choose(self, data: Buffer, rate: float) -> Codec:
        """The codec for this extent.

        Args:
            data: the extent. Its first 64 KiB are compressed if a sample is due.
            rate: payload bytes per second that go over the link; 0 if not known yet.

        """
        if not self._codecs or len(data) < self._SMALLEST:
            return Codec.NONE
        if self._until_next:
            self._until_next -= 1
            return self.codec
        self._take_sample(memoryview(data)[: self.SAMPLE])
        self._note_rate(rate)
        self.codec = self._best()
        self._until_next = self._every * self._rarely - 1
        return self.codec

    def _take_sample(self, sample: memoryview) -> None:
        """Learn each codec's ratio and seconds per byte, the last samples weighing most."""
        shrinks = False
        for codec in self._codecs:
            begun = self._clock() if self._clock else 0.0
            ratio = len(compress(codec, sample)) / len(sample)
            cost = (self._clock() - begun if self._clock else 0.0) / len(sample) / self._threads
            before = self._seen.get(codec, (ratio, cost))
            self._seen[codec] = (
                before[0] + self._WEIGHT * (ratio - before[0]),
                before[1] + self._WEIGHT * (cost - before[1]),
            )
            shrinks |= ratio < self._CLEARLY
        self._rarely = 1 if shrinks else min(self._rarely * 2, self._RAREST)

    def _note_rate(self, rate: float) -> None:
        """Learn what the link takes.

        What goes over it says so only if it was the bottleneck: while compressing is, the link may
        take more than is seen.
        """
        ratio, cost = self._seen.get(self.codec, (1.0, 0.0))
        held_up = bool(rate) and cost > 0 and rate >= self._CLEARLY * ratio / cost
        if not self._capacity or (held_up and rate > self._capacity):
            self._capacity = rate
        elif rate and not held_up:
            self._capacity += self._WEIGHT * (rate - self._capacity)

    def _seconds(self, codec: Codec) -> float:
        """Seconds per byte; in units of sending one while the link's rate is not known."""
        ratio, cost = self._seen.get(codec, (1.0, 0.0))
        if not self._capacity:
            return ratio
        return max(cost, ratio / self._capacity)

    def _best(self) -> Codec:
        best = min((Codec.NONE, *self._codecs), key=self._seconds)
        clearly = self._seconds(best) < self._CLEARLY * self._seconds(self.codec)
        return best if clearly else self.codec
