"""What a departure and an arrival say to each other.

::

    magic "VFPG" | version 1 | type | reserved 2 | count 4 | length 8 | body of ``length`` bytes

All numbers of the header are big-endian. Frames come in this order:

1. ``HELLO``: JSON, size of memory and of a page.
2. ``PAGES``, any number: ``count`` page numbers of 32 bits, little-endian, then that many pages.
   ``ZEROES``: page numbers alone. Memory is zero before the first frame.
3. ``STATE``: JSON, the registers and the BLAKE3 digest of all memory that is not zero (see
   ``GuestMemory.digest``). Nothing follows.

Every length is checked against the type's limit before anything is allocated, every page number
against the memory that was agreed.
"""

from __future__ import annotations

import enum
import struct
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from vmferry.api.hypervisor import ByteStream
from vmferry.errors import ConnectionLost, ProtocolError
from vmferry_hypervisors.process.layout import PAGE

__all__ = [
    "PIECE_PAGES",
    "FinalState",
    "FrameType",
    "Hello",
    "decode",
    "pack",
    "pack_numbers",
    "read_frame",
    "unpack_numbers",
]

_HEADER = struct.Struct(">4sBBHIQ")
_MAGIC, _VERSION = b"VFPG", 1
PIECE_PAGES = 256
"""Pages in one ``PAGES`` frame at most."""
_ZERO_PAGES = 1 << 16
_TEXT = 64 * 1024
StructT = TypeVar("StructT", bound=msgspec.Struct)
Numbers = npt.NDArray[np.int64]


class FrameType(enum.IntEnum):
    """Types of frames."""

    HELLO = 1
    PAGES = 2
    ZEROES = 3
    STATE = 4


_LIMITS = {
    FrameType.HELLO: (0, _TEXT),
    FrameType.PAGES: (PIECE_PAGES, PIECE_PAGES * (4 + PAGE)),
    FrameType.ZEROES: (_ZERO_PAGES, _ZERO_PAGES * 4),
    FrameType.STATE: (0, _TEXT),
}
"""Largest count and length of each type."""
_PER_COUNT = {FrameType.PAGES: 4 + PAGE, FrameType.ZEROES: 4}


class Hello(msgspec.Struct, frozen=True):
    """Bytes of memory and of a page."""

    memory: int
    page: int


class FinalState(msgspec.Struct, frozen=True):
    """The registers, and the digest of all memory (32 bytes; empty if it was not computed)."""

    registers: bytes
    digest: bytes


def pack(kind: FrameType, count: int, *parts: bytes | memoryview) -> bytes:
    """A whole frame."""
    length = sum(len(part) for part in parts)
    header = _HEADER.pack(_MAGIC, _VERSION, kind, 0, count, length)
    return b"".join((header, *parts))


def pack_numbers(pages: Numbers) -> bytes:
    """Page numbers as they travel."""
    return pages.astype("<u4").tobytes()


def unpack_numbers(body: memoryview, count: int, pages: int) -> Numbers:
    """The ``count`` page numbers that ``body`` begins with, all below ``pages``.

    Raises ``ProtocolError``.
    """
    numbers = np.frombuffer(body, dtype="<u4", count=count).astype(np.int64)
    if count and int(numbers.max()) >= pages:
        raise ProtocolError(f"page {numbers.max()} of a memory of {pages} pages")
    return numbers


def decode(body: memoryview, model: type[StructT]) -> StructT:
    """A JSON body as ``model``; raises ``ProtocolError``."""
    try:
        return msgspec.json.decode(body, type=model)
    except ValueError as error:
        raise ProtocolError(f"{model.__name__} of the memory stream: {error}") from error


async def read_frame(stream: ByteStream) -> tuple[FrameType, int, memoryview]:
    """Type, count and body of the next frame.

    Raises:
        ConnectionLost: the stream ends before the frame does.
        ProtocolError: it is no frame, or too large.

    """
    header = await _exactly(stream, _HEADER.size)
    magic, version, kind, _, count, length = _HEADER.unpack(header)
    if magic != _MAGIC or version != _VERSION:
        raise ProtocolError(f"memory stream: {magic!r} version {version} is not understood")
    if kind not in _LIMITS:
        raise ProtocolError(f"memory stream: frame type {kind} is unknown")
    kind = FrameType(kind)
    most, longest = _LIMITS[kind]
    fits = kind not in _PER_COUNT or length == count * _PER_COUNT[kind]
    if count > most or length > longest or not fits:
        raise ProtocolError(f"{kind.name} frame of {count} pages and {length} bytes")
    return kind, count, await _exactly(stream, length)


async def _exactly(stream: ByteStream, length: int) -> memoryview:
    buffer = bytearray(length)
    view, at = memoryview(buffer), 0
    while at < length:
        piece = await stream.read(length - at)
        if not piece:
            raise ConnectionLost("the memory stream ended too early")
        view[at : at + len(piece)] = piece
        at += len(piece)
    return view
