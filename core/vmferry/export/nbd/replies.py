"""Replies as lists of pieces to send: headers are built, data is passed on uncopied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from vmferry.export.nbd.protocol import (
    BLOCK_DESCRIPTOR,
    CONTEXT_ID,
    MAX_CHUNK_ERROR,
    REPLY_DONE,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    U16,
    U32,
    U64,
    Chunk,
    Error,
)

__all__ = [
    "ALLOCATION_ID",
    "Parts",
    "Piece",
    "data_chunk",
    "done",
    "error_chunk",
    "pieces_chunks",
    "simple",
    "status_chunk",
]

ALLOCATION_ID: Final = 1
"""The context id under which ``base:allocation`` is served."""

Parts: TypeAlias = Sequence[bytes | memoryview]
Piece: TypeAlias = tuple[int, int, memoryview | None]
"""Offset and length on the disk, and the data; ``None`` for a hole."""

_DONE = int(REPLY_DONE)
_NONE, _DATA, _HOLE, _STATUS = map(
    int, (Chunk.NONE, Chunk.OFFSET_DATA, Chunk.OFFSET_HOLE, Chunk.BLOCK_STATUS)
)
_simple, _chunk, _u32, _u64 = SIMPLE_REPLY.pack, STRUCTURED_REPLY.pack, U32.pack, U64.pack


def simple(cookie: int, error: int = 0, data: memoryview | None = None) -> Parts:
    """A simple reply, with the data of a read."""
    head = _simple(SIMPLE_REPLY_MAGIC, error, cookie)
    return [head] if data is None else [head, data]


def done(cookie: int) -> Parts:
    """A structured reply that says only that the request succeeded."""
    return [_chunk(STRUCTURED_REPLY_MAGIC, _DONE, _NONE, cookie, 0)]


def data_chunk(cookie: int, offset: int, data: memoryview, flags: int = _DONE) -> Parts:
    """Data read from ``offset``."""
    head = _chunk(STRUCTURED_REPLY_MAGIC, flags, _DATA, cookie, 8 + len(data))
    return [head + _u64(offset), data]


def pieces_chunks(cookie: int, pieces: Sequence[Piece]) -> Parts:
    """A read answered in several chunks, of which the last ends the reply."""
    parts: list[bytes | memoryview] = []
    for number, (offset, length, data) in enumerate(pieces, 1):
        flags = _DONE if number == len(pieces) else 0
        if data is not None:
            parts += data_chunk(cookie, offset, data, flags)
        else:
            head = _chunk(STRUCTURED_REPLY_MAGIC, flags, _HOLE, cookie, 12)
            parts.append(head + _u64(offset) + _u32(length))
    return parts


def status_chunk(cookie: int, states: Iterable[tuple[int, int]]) -> Parts:
    """Lengths and states of the extents asked for, in the ``base:allocation`` context."""
    body = CONTEXT_ID.pack(ALLOCATION_ID) + b"".join(BLOCK_DESCRIPTOR.pack(*s) for s in states)
    return [_chunk(STRUCTURED_REPLY_MAGIC, _DONE, _STATUS, cookie, len(body)) + body]


def error_chunk(cookie: int, error: Error, message: str, offset: int | None = None) -> Parts:
    """A structured error with its message; with the ``offset`` of the failure if it is known."""
    text = message.encode(errors="replace")[:MAX_CHUNK_ERROR]
    body = _u32(error) + U16.pack(len(text)) + text
    if offset is not None:
        body += _u64(offset)
    kind = Chunk.ERROR if offset is None else Chunk.ERROR_OFFSET
    return [_chunk(STRUCTURED_REPLY_MAGIC, _DONE, kind, cookie, len(body)) + body]
