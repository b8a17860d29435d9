"""Compression of payloads: the codecs, bounded against hostile input.

LZ4 in the block format (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md) without a
stored size, Zstandard in frames that carry it (RFC 8878). Both libraries release the GIL.
"""

from __future__ import annotations

import enum
import threading
from typing import TypeAlias

import lz4.block  # type: ignore[import-untyped]
import zstandard

from vmferry.errors import ProtocolError
from vmferry.units import MIB

__all__ = [
    "MAX_RAW",
    "Codec",
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
        ProtocolError: the codec is not known, or the payload is damaged or of another length.

    """
    try:
        known = Codec(codec)
    except ValueError:
        raise ProtocolError(f"{what}: codec {codec} is not known") from None
    if known is Codec.NONE and len(payload) != length:
        raise ProtocolError(f"{what}: payload of {len(payload)} bytes where length says {length}")
    return decompress(known, payload, length)
