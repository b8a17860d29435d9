"""Numbers and layouts of the protocol (doc/proto.md), in network byte order."""

from __future__ import annotations

import enum
import struct
from typing import Final

__all__ = [
    "ALLOCATION",
    "DESCRIPTOR",
    "DONE",
    "ERROR_BIT",
    "FIXED_NEWSTYLE",
    "GREETING",
    "IHAVEOPT",
    "INFO_BLOCK_SIZE",
    "INFO_EXPORT",
    "MAX_MESSAGE",
    "MAX_OPTION_REPLY",
    "MAX_PAYLOAD",
    "NBDMAGIC",
    "NO_ZEROES",
    "OPTION",
    "OPTION_REPLY",
    "OPTION_REPLY_MAGIC",
    "REQUEST",
    "REQUEST_MAGIC",
    "SIMPLE_MAGIC",
    "SIMPLE_REST",
    "STRUCTURED_MAGIC",
    "STRUCTURED_REST",
    "U16",
    "U32",
    "U64",
    "Chunk",
    "Command",
    "Feature",
    "Flag",
    "Option",
    "Reply",
    "dirty_bitmap",
]

ALLOCATION: Final = "base:allocation"
"""Metadata context: bit 0 of its flags is a hole, bit 1 reads as zeroes."""


def dirty_bitmap(name: str) -> str:
    """Metadata context of a QEMU export's bitmap: bit 0 of its flags is dirty."""
    return f"qemu:dirty-bitmap:{name}"


NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_MAGIC: Final = 0x67446698
STRUCTURED_MAGIC: Final = 0x668E33EF

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
GREETING: Final = struct.Struct(">QQH")
OPTION: Final = struct.Struct(">QII")
OPTION_REPLY: Final = struct.Struct(">QIII")
INFO_EXPORT: Final = struct.Struct(">QH")
INFO_BLOCK_SIZE: Final = struct.Struct(">III")
REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REST: Final = struct.Struct(">IQ")
"""A simple reply after its magic: errno, cookie."""
STRUCTURED_REST: Final = struct.Struct(">HHQI")
"""A chunk after its magic: flags, type, cookie, length."""
DESCRIPTOR: Final = struct.Struct(">II")

MAX_OPTION_REPLY: Final = 64 * 1024
MAX_PAYLOAD: Final = 32 << 20
"""Bytes of data in one request, and of one chunk."""
MAX_MESSAGE: Final = 4096
"""Bytes of an error's text."""
DONE: Final = 1
ERROR_BIT: Final = 1 << 15


class Option(enum.IntEnum):
    """What a client asks in the negotiation."""

    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class Reply(enum.IntEnum):
    """How a server answers an option; errors have bit 31 set."""

    ACK = 1
    INFO = 3
    META_CONTEXT = 4
    ERROR = 1 << 31
    ERR_UNKNOWN = (1 << 31) | 6


class Feature(enum.IntFlag):
    """What an export can do."""

    READ_ONLY = 1 << 1
    FLUSH = 1 << 2
    FUA = 1 << 3
    TRIM = 1 << 5
    WRITE_ZEROES = 1 << 6


class Command(enum.IntEnum):
    """Requests."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Flag(enum.IntFlag):
    """Flags of a request."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1


class Chunk(enum.IntEnum):
    """Kinds of chunks of a structured reply."""

    NONE = 0
    DATA = 1
    HOLE = 2
    STATUS = 5
