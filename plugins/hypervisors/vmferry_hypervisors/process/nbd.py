"""The NBD protocol as a client needs it: handshake, requests, simple replies.

Fixed newstyle negotiation with ``NBD_OPT_GO``; see doc/proto.md of the NetworkBlockDevice/nbd
project. Structured replies are not asked for, so every reply is a simple one.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from vmferry.errors import InputError, ProtocolError

__all__ = [
    "REPLY",
    "Command",
    "Export",
    "Flag",
    "connect",
    "connect_unix",
    "pack_request",
    "parse_url",
    "unpack_reply",
]

_NBDMAGIC, _IHAVEOPT = 0x4E42444D41474943, 0x49484156454F5054
_OPTION_REPLY, _OPT_GO = 0x3E889045565A9, 7
_REP_ACK, _REP_INFO, _REP_ERROR, _INFO_EXPORT = 1, 3, 1 << 31, 0
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_MAX_OPTION_REPLY = 64 * 1024
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")


class Command:
    """Request types."""

    READ, WRITE, _DISC, FLUSH, TRIM, _CACHE, WRITE_ZEROES = range(7)


class Flag:
    """Transmission flags of an export."""

    READ_ONLY, SEND_FLUSH, SEND_TRIM, SEND_WRITE_ZEROES = 1 << 1, 1 << 2, 1 << 5, 1 << 6


class Export(NamedTuple):
    """What the server said of an export: its size in bytes and its transmission flags."""

    size: int
    flags: int


def parse_url(url: str) -> tuple[str, str]:
    """Export name and socket path of ``nbd+unix:///NAME?socket=PATH``; raises ``InputError``."""
    parts = urlsplit(url)
    path = parse_qs(parts.query).get("socket", [""])[0]
    if parts.scheme != "nbd+unix" or not path:
        raise InputError(f"{url!r} is no disk; write nbd+unix:///NAME?socket=PATH or file:PATH")
    return unquote(parts.path.removeprefix("/")), path


def connect_unix(path: Path, timeout: float) -> socket.socket:
    """Connect to a unix socket whose path may be longer than the 108 bytes of ``sockaddr_un``."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


def connect(url: str, timeout: float) -> tuple[socket.socket, Export]:
    """Connect and negotiate; every step within ``timeout`` seconds.

    Raises:
        OSError: nobody serves there, or it ended the connection.
        ProtocolError: it is no NBD server that knows the export.

    """
    name, path = parse_url(url)
    connection = connect_unix(Path(path), timeout)
    try:
        return connection, _negotiate(connection, name)
    except BaseException:
        connection.close()
        raise


def _negotiate(connection: socket.socket, name: str) -> Export:
    magic, option_magic, flags = struct.unpack(">QQH", _receive(connection, 18))
    if (magic, option_magic) != (_NBDMAGIC, _IHAVEOPT) or not flags & _FIXED_NEWSTYLE:
        raise ProtocolError("the disk's server does not speak fixed newstyle NBD")
    encoded = name.encode()
    data = struct.pack(">I", len(encoded)) + encoded + struct.pack(">H", 0)
    option = struct.pack(">QII", _IHAVEOPT, _OPT_GO, len(data))
    connection.sendall(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)) + option + data)
    export = None
    while True:
        kind, payload = _option_reply(connection)
        if kind == _REP_INFO and payload[:2] == struct.pack(">H", _INFO_EXPORT):
            export = Export(*struct.unpack(">QH", payload[2:12]))
        elif kind == _REP_ACK and export:
            return export
        elif kind & _REP_ERROR or kind == _REP_ACK:
            raise ProtocolError(f"export {name!r} was refused: {payload.decode(errors='replace')}")


def _option_reply(connection: socket.socket) -> tuple[int, bytes]:
    magic, option, kind, length = struct.unpack(">QIII", _receive(connection, 20))
    if magic != _OPTION_REPLY or option != _OPT_GO or length > _MAX_OPTION_REPLY:
        raise ProtocolError("the disk's server broke the NBD negotiation")
    return kind, _receive(connection, length)


def _receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise ConnectionResetError("the disk's server ended the connection")
        data += piece
    return bytes(data)


def pack_request(command: int, handle: int, offset: int, length: int) -> bytes:
    """The header of a request; a write's data follow it."""
    return _REQUEST.pack(_REQUEST_MAGIC, 0, command, handle, offset, length)


def unpack_reply(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int]:
    """Error number (0 if none) and handle of the simple reply at ``at``."""
    magic, error, handle = REPLY.unpack_from(data, at)
    if magic != _REPLY_MAGIC:
        raise ProtocolError(f"an NBD reply begins with {magic:#x}")
    return error, handle
