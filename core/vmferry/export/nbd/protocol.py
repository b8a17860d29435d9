"""Numbers and layouts of the NBD protocol (NetworkBlockDevice/nbd, ``doc/proto.md``).

Everything on the wire is big-endian. Names follow the specification without their ``NBD_``.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from vmferry.units import KIB, MIB

__all__ = [
    "BLOCK_DESCRIPTOR",
    "CLIENT_FLAGS",
    "CONTEXT_ID",
    "EXPORT_NAME_REPLY",
    "FIXED_NEWSTYLE",
    "INFO_BLOCK_SIZE",
    "INFO_EXPORT",
    "INFO_HEAD",
    "INIT_MAGIC",
    "MAX_CHUNK_ERROR",
    "MAX_NAME",
    "MAX_OPTION",
    "MAX_PAYLOAD",
    "NO_ZEROES",
    "OPTION",
    "OPTION_MAGIC",
    "OPTION_REPLY",
    "OPTION_REPLY_MAGIC",
    "REPLY_DONE",
    "REQUEST",
    "REQUEST_MAGIC",
    "SERVER_GREETING",
    "SIMPLE_REPLY",
    "SIMPLE_REPLY_MAGIC",
    "STATE_HOLE",
    "STATE_ZERO",
    "STRUCTURED_REPLY",
    "STRUCTURED_REPLY_MAGIC",
    "U16",
    "U32",
    "U64",
    "Chunk",
    "Command",
    "CommandFlag",
    "Error",
    "Info",
    "Option",
    "OptionReply",
    "TransmissionFlag",
]

MAX_PAYLOAD: Final = 32 * MIB
"""Bytes of data in one read or write; what is advertised as the maximum block size."""
MAX_OPTION: Final = 64 * KIB
"""Bytes of data of one option."""
MAX_NAME: Final = 4096
"""Bytes of an export name or a metadata context query, by the specification."""
MAX_CHUNK_ERROR: Final = 1024
"""Bytes of the message in an error chunk."""

INIT_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2
CLIENT_FLAGS: Final = FIXED_NEWSTYLE | NO_ZEROES
"""All flags a client may set; the numbers are the same in both directions."""

U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
SERVER_GREETING: Final = struct.Struct(">QQH")
OPTION: Final = struct.Struct(">QII")
OPTION_REPLY: Final = struct.Struct(">QIII")
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
INFO_HEAD: Final = U16
INFO_EXPORT: Final = struct.Struct(">HQH")
INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")
CONTEXT_ID: Final = U32
REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
STRUCTURED_REPLY: Final = struct.Struct(">IHHQI")
BLOCK_DESCRIPTOR: Final = struct.Struct(">II")

REPLY_DONE: Final = 1
STATE_HOLE: Final = 1
STATE_ZERO: Final = 2


class TransmissionFlag(enum.IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8


class Option(enum.IntEnum):
    """What a client may ask for in the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """How an option is answered."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009


class Info(enum.IntEnum):
    """Kinds of information in the answer to ``INFO`` and ``GO``."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(enum.IntEnum):
    """Requests of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """Flags of a request."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3


class Chunk(enum.IntEnum):
    """Kinds of chunks in a structured reply."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


class Error(enum.IntEnum):
    """The only error numbers the protocol knows; each has Linux's value."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
