"""What xl(1) says to its peer: the header of a saved domain, and the words of the handshake.

``tools/xl/xl.h`` and ``xl_vmcontrol.c`` (``save_domain_core_writeconfig``): 32 bytes of magic, four
little numbers, and optional data that begin with the length of the domain's configuration in JSON,
which ends with a NUL. libxl's own stream follows.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable

from vmferry.errors import ProtocolError

__all__ = ["BANNER", "GO", "READY", "REPORT", "Header", "read_header"]

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
"""A byte follows: 0 if the guest runs."""

_MAGIC = b"Xen saved domain, xl format\n \0 \r"
_FIELDS = struct.Struct("<IIII")
_LENGTH = struct.Struct("<I")
_BYTE_ORDER = 0x01020304
_JSON, _STREAM_V2 = 1, 2
_MAX_CONFIG = 1 << 20

ReadExactly = Callable[[int], Awaitable[bytes]]


class Header:
    """The header of a saved domain.

    Attributes:
        config: the domain's configuration, JSON, without the final NUL.

    """

    def __init__(self, config: bytes, flags: int = _JSON | _STREAM_V2, optional: int = 0) -> None:
        self.config = config
        self._flags, self._optional = flags, optional

    def encode(self) -> bytes:
        """The header with both of its lengths as ``config`` needs them."""
        body = _LENGTH.pack(len(self.config) + 1) + self.config + b"\0"
        return _MAGIC + _FIELDS.pack(_BYTE_ORDER, self._flags, self._optional, len(body)) + body


async def read_header(read: ReadExactly) -> Header:
    """The header at the beginning of a stream; not a byte more is read.

    Raises:
        ProtocolError: it is none, or of a form that is not known.

    """
    start = await read(len(_MAGIC) + _FIELDS.size)
    order, flags, optional, length = _FIELDS.unpack(start[len(_MAGIC) :])
    if not start.startswith(_MAGIC) or order != _BYTE_ORDER:
        raise ProtocolError("the memory stream does not begin with a domain saved by xl")
    if flags != _JSON | _STREAM_V2:
        raise ProtocolError(f"the saved domain has flags {flags:#x}; 0x3 is known")
    if not _LENGTH.size < length <= _MAX_CONFIG:
        raise ProtocolError(f"the saved domain has {length} bytes of configuration")
    body = await read(length)
    if _LENGTH.unpack_from(body)[0] != length - _LENGTH.size:
        raise ProtocolError("the two lengths of the saved domain's configuration do not agree")
    return Header(body[_LENGTH.size :].rstrip(b"\0"), flags, optional)
