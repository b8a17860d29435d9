"""The control socket of an export: how a tracker in another process starts, harvests and stops.

A unix stream socket. Each message is a length (four bytes, big-endian) and that many bytes of
msgpack: a map. A client sends one request and waits for its reply; requests are at most 64 KiB
long, replies at most 256 MiB. What breaks these rules ends the connection.

A request has ``op`` and, but for ``status``, ``disk``, the name of an export. A reply has ``ok``;
if that is false, ``code`` (``bad-request``, ``no-disk``, ``busy``, ``not-tracking``, ``timeout``,
``failed``) and ``error``, a sentence.

========== =========================== ============================================================
op         further fields              reply
========== =========================== ============================================================
status                                 ``disks``: by name ``size``, ``sector_size``, ``read_only``,
                                       ``tracking``, ``tracked`` (a tracker is connected),
                                       ``block_size``
start      ``block_size``              ``block_size`` really used, ``session``. Tracking is on, and
                                       writes that were under way have ended
attach     ``session``                 ``block_size``: go on with a session on this connection
harvest    ``confirm``                 ``number``, ``map`` (``DirtyMap.encode``)
ack        ``confirm``                 nothing
drain      ``timeout`` in seconds      nothing: all that clients had sent is done and answered
stop       ``session``                 nothing: tracking is off, its marks are gone
========== =========================== ============================================================

**No mark is lost with a reply.** A map that was handed out is kept until it is confirmed: by an
``ack`` or by the next ``harvest`` whose ``confirm`` is that map's ``number``. A harvest that
confirms anything else (0 is never a map's number), an ``attach``, or the end of the tracker's
connection puts the map back among the marks.

**One tracker at a time.** A disk belongs to the connection that started or attached to its
tracking; ``start`` from another one is ``busy`` while that connection lives. When it ends, tracking
stays on until ``attach`` with the session's name takes it over, ``start`` begins anew or ``stop``
ends it. But if the connection ends before the tracker sent ``ack`` or ``harvest``, nobody may know
the session's name, and tracking ends with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgpack  # type: ignore[import-untyped]
import msgspec

from vmferry.errors import ProtocolError
from vmferry.units import KIB, MIB

__all__ = [
    "MAX_BLOCKS",
    "MAX_REPLY",
    "MAX_REQUEST",
    "Code",
    "ControlRefused",
    "Request",
    "read_request",
    "write_reply",
]

MAX_REQUEST: Final = 64 * KIB
"""Bytes of a request without its length."""
MAX_REPLY: Final = 256 * MIB
"""Bytes of a reply without its length."""
MAX_BLOCKS: Final = 1 << 30
"""Blocks of a map that surely fits into a reply; on a larger disk larger blocks are used."""

_LENGTH: Final = 4

Code = Literal["bad-request", "no-disk", "busy", "not-tracking", "timeout", "failed"]


class ControlRefused(Exception):
    """A request that is answered with ``ok: false``."""

    def __init__(self, code: Code, message: str) -> None:
        self.code: Code = code
        super().__init__(message)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request; unknown fields are ignored, so that later clients may send more."""

    op: Literal["status", "start", "attach", "harvest", "ack", "drain", "stop"]
    disk: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    block_size: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    session: Annotated[str, msgspec.Meta(max_length=64)] = ""
    confirm: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    timeout: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request; ``None`` at the end of the stream.

    Raises:
        ProtocolError: it is too long or cut off.
        ControlRefused: it is whole, but not a request.

    """
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH))
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ProtocolError("a control request was cut off in its length") from error
        return None
    if length > MAX_REQUEST:
        raise ProtocolError(f"a control request of {length} bytes is over {MAX_REQUEST}")
    try:
        body = await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ProtocolError("a control request was cut off") from error
    return _parse(body)


def _parse(body: bytes) -> Request:
    try:
        return msgspec.convert(msgpack.unpackb(body), Request)
    except (ValueError, msgpack.UnpackException) as error:  # msgspec's errors are ValueErrors
        raise ControlRefused("bad-request", f"not a control request: {error}") from error


async def write_reply(writer: asyncio.StreamWriter, reply: Mapping[str, Any]) -> None:
    """Send one reply, and wait until the socket took it but for a small rest."""
    body = msgpack.packb(reply)
    if len(body) > MAX_REPLY:
        body = msgpack.packb(
            {"ok": False, "code": "failed", "error": f"a reply of {len(body)} bytes is too long"}
        )
    writer.write(len(body).to_bytes(_LENGTH) + body)
    await writer.drain()
