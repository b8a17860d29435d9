"""What each request does to the disk, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from vmferry.api.volume import BlockIO, Extent, ExtentKind
from vmferry.export.nbd.exports import Export, Session
from vmferry.export.nbd.failure import RequestRefused, error_of
from vmferry.export.nbd.protocol import (
    MAX_PAYLOAD,
    STATE_HOLE,
    STATE_ZERO,
    Command,
    CommandFlag,
    Error,
)
from vmferry.export.nbd.replies import (
    Parts,
    Piece,
    data_chunk,
    done,
    error_chunk,
    pieces_chunks,
    simple,
    status_chunk,
)
from vmferry.units import KIB

__all__ = ["CANCELLABLE", "Request", "answer_failure", "perform", "refuse"]

READ, WRITE, FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
TRIM, WRITE_ZEROES = int(Command.TRIM), int(Command.WRITE_ZEROES)
BLOCK_STATUS = int(Command.BLOCK_STATUS)
FUA, NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)
DF, REQ_ONE = int(CommandFlag.DF), int(CommandFlag.REQ_ONE)

CANCELLABLE: Final = frozenset({READ, BLOCK_STATUS})
"""Commands nobody misses when the client is gone: they change nothing."""

_MAPPED_FROM: Final = 64 * KIB
"""Bytes of the smallest read for which asking for the map can pay."""
_PIECES: Final = 256
_STATES: Final = 8192

_ALLOWED: Final[dict[int, int]] = {
    READ: DF,
    WRITE: FUA,
    FLUSH: FUA,
    TRIM: FUA,
    WRITE_ZEROES: FUA | NO_HOLE,
    BLOCK_STATUS: REQ_ONE,
}
_CHANGING: Final = frozenset({WRITE, TRIM, WRITE_ZEROES})
_WITH_DATA: Final = frozenset({READ, WRITE})
_STATE: Final = {
    ExtentKind.DATA: 0,
    ExtentKind.ZERO: STATE_ZERO,
    ExtentKind.HOLE: STATE_ZERO | STATE_HOLE,
}


class Request:
    """One request of a client.

    Attributes:
        flags: ``CommandFlag`` bits.
        kind: number of the command, which may be unknown.
        cookie: what the reply is told apart by.
        offset: first byte on the disk.
        length: bytes on the disk.
        cost: bytes of memory it takes.
        buffer: memory for the data of a read or write; may be longer than ``length``.
        task: what performs it.

    """

    __slots__ = ("buffer", "cookie", "cost", "flags", "kind", "length", "offset", "task")

    def __init__(self, flags: int, kind: int, cookie: int, offset: int, length: int) -> None:
        self.flags, self.kind, self.cookie = flags, kind, cookie
        self.offset, self.length = offset, length
        self.cost = length if kind in _WITH_DATA and length <= MAX_PAYLOAD else 0
        self.buffer: bytearray | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def data(self) -> memoryview:
        """The part of ``buffer`` that holds the request's data."""
        return memoryview(self.buffer or b"")[: self.length]


def refuse(session: Session, request: Request) -> RequestRefused | None:
    """Why the request cannot be tried; ``None`` if it can.

    Of what a read or write may be (specification, "Request types"): known command and flags, a
    range inside the disk of whole sectors, at most ``MAX_PAYLOAD`` bytes of data.
    """
    kind, export = request.kind, session.export
    allowed = _ALLOWED.get(kind)
    if allowed is None or (kind == BLOCK_STATUS and not session.allocation):
        return RequestRefused(Error.EINVAL, f"command {kind} is not available")
    if request.flags & ~allowed or (request.flags & DF and not session.structured):
        return RequestRefused(Error.EINVAL, f"flags {request.flags:#x} are not available")
    if kind == FLUSH:
        return None
    if kind in _CHANGING and export.read_only:
        return RequestRefused(Error.EPERM, "the export is read-only")
    return _refuse_range(export, request)


def _refuse_range(export: Export, request: Request) -> RequestRefused | None:
    offset, length = request.offset, request.length
    if length == 0 or (request.kind in _WITH_DATA and length > MAX_PAYLOAD):
        return RequestRefused(Error.EINVAL, f"length {length} is not allowed")
    if offset + length > export.geometry.size:
        error = Error.ENOSPC if request.kind in _CHANGING else Error.EINVAL
        return RequestRefused(error, f"{length} bytes at {offset} end beyond the disk")
    sector = export.geometry.sector_size
    if (offset | length) & (sector - 1):
        return RequestRefused(
            Error.EINVAL, f"{length} bytes at {offset} are not whole sectors of {sector}"
        )
    return None


async def perform(session: Session, request: Request) -> Parts:
    """Do what the request asks for and return its reply.

    Raises whatever the disk raises, or ``RequestRefused``.
    """
    return await _HANDLERS[request.kind](session, request)


def answer_failure(session: Session, request: Request, failure: BaseException) -> Parts:
    """The reply to a request that failed."""
    error = error_of(failure)
    if not session.structured:
        return simple(request.cookie, error)
    located = request.kind == READ and not isinstance(failure, RequestRefused)
    return error_chunk(request.cookie, error, str(failure), request.offset if located else None)


async def _read(session: Session, request: Request) -> Parts:
    export, structured = session.export, session.structured
    offset, data = request.offset, request.data
    if structured and export.maps and request.length >= _MAPPED_FROM and not request.flags & DF:
        return await _read_mapped(export.io, request)
    await export.io.read_into(offset, data)
    if structured:
        return data_chunk(request.cookie, offset, data)
    return simple(request.cookie, 0, data)


async def _read_mapped(io: BlockIO, request: Request) -> Parts:
    data, pieces = request.data, list[Piece]()
    for extent in await _extents(io, request.offset, request.length, _PIECES):
        view = None
        if extent.kind is ExtentKind.DATA:
            start = extent.offset - request.offset
            view = data[start : start + extent.length]
            await io.read_into(extent.offset, view)
        pieces.append((extent.offset, extent.length, view))
    end = pieces[-1][0] + pieces[-1][1]
    if rest := request.offset + request.length - end:
        view = data[-rest:]
        await io.read_into(end, view)
        pieces.append((end, rest, view))
    return pieces_chunks(request.cookie, pieces)


async def _extents(io: BlockIO, offset: int, length: int, most: int) -> list[Extent]:
    """The first extents of the range, at least one and at most ``most``."""
    found: list[Extent] = []
    source = io.extents(offset, length)
    try:
        async for extent in source:
            found.append(extent)
            if len(found) == most:
                break
    finally:
        if close := getattr(source, "aclose", None):
            await close()
    return found or [Extent(offset, length, ExtentKind.DATA)]


async def _write(session: Session, request: Request) -> Parts:
    await session.export.io.write(request.offset, request.data.toreadonly())
    return await _changed(session, request)


async def _trim(session: Session, request: Request) -> Parts:
    await session.export.io.discard(request.offset, request.length)
    return await _changed(session, request)


async def _write_zeroes(session: Session, request: Request) -> Parts:
    unmap = not request.flags & NO_HOLE
    await session.export.io.write_zeroes(request.offset, request.length, unmap=unmap)
    return await _changed(session, request)


async def _flush(session: Session, request: Request) -> Parts:
    if not session.export.read_only:
        await session.export.io.flush()
    return _succeeded(session, request)


async def _changed(session: Session, request: Request) -> Parts:
    if request.flags & FUA:
        await session.export.io.flush()
    return _succeeded(session, request)


async def _block_status(session: Session, request: Request) -> Parts:
    most = 1 if request.flags & REQ_ONE else _STATES
    extents = await _extents(session.export.io, request.offset, request.length, most)
    return status_chunk(request.cookie, ((e.length, _STATE[e.kind]) for e in extents))


def _succeeded(session: Session, request: Request) -> Parts:
    return done(request.cookie) if session.structured else simple(request.cookie)


_HANDLERS: Final[dict[int, Callable[[Session, Request], Awaitable[Parts]]]] = {
    READ: _read,
    WRITE: _write,
    FLUSH: _flush,
    TRIM: _trim,
    WRITE_ZEROES: _write_zeroes,
    BLOCK_STATUS: _block_status,
}
