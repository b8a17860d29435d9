"""What is said by SEND on a lane.

::

    offset 0   u16  magic 0x5244
           2   u8   kind: 1 data, 2 credit, 3 end of the lane
           3   u8   0
           4   u32  bytes of the head
           8   u32  bytes of the payload
          12   u32  receives consumed so far, modulo 2**32
          16   u32  slots consumed so far, modulo 2**32
          20   head, payload: both if they fit into the buffer, else the head if that fits

All numbers are in network order. What does not follow comes by WRITE and fills slots, in their
order, each but the last one to its end.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from vmferry.api.transport import Limits
from vmferry.errors import ProtocolError

__all__ = ["INLINE", "SEND_SIZE", "Kind", "Message"]

_LAYOUT = struct.Struct("!HBBIIII")
_MAGIC = 0x5244
_MASK = 0xFFFFFFFF

SEND_SIZE = 4096
"""Bytes of the buffers for SEND."""
INLINE = SEND_SIZE - _LAYOUT.size
"""Most bytes of a body that go with their message."""


class Kind(enum.IntEnum):
    """What a message is for."""

    DATA = 1
    CREDIT = 2
    END = 3


_KINDS = frozenset(Kind)


class Message(msgspec.Struct, frozen=True):
    """A message without its body."""

    SIZE = _LAYOUT.size

    kind: Kind
    head: int = 0
    payload: int = 0
    receives: int = 0
    slots: int = 0

    @property
    def body(self) -> int:
        """Bytes of head and payload."""
        return self.head + self.payload

    @property
    def inline(self) -> int:
        """Bytes that follow the message; the rest of the body comes by WRITE."""
        return next((size for size in (self.body, self.head) if size <= INLINE), 0)

    def encode(self) -> bytes:
        """Return the message's ``SIZE`` bytes."""
        return _LAYOUT.pack(
            _MAGIC,
            self.kind,
            0,
            self.head,
            self.payload,
            self.receives & _MASK,
            self.slots & _MASK,
        )

    @classmethod
    def decode(cls, data: memoryview, limits: Limits) -> Message:
        """Take a received SEND apart.

        Raises:
            ProtocolError: it is no message, or larger than ``limits``.

        """
        if data.nbytes < cls.SIZE:
            raise ProtocolError(f"no message: {data.nbytes} bytes")
        magic, kind, zero, head, payload, receives, slots = _LAYOUT.unpack_from(data)
        if magic != _MAGIC or kind not in _KINDS or zero:
            raise ProtocolError(f"no message: magic {magic:#06x}, kind {kind}")
        if head > limits.head:
            raise ProtocolError(f"head of {head} bytes; the limit is {limits.head}")
        if payload > limits.payload:
            raise ProtocolError(f"payload of {payload} bytes; the limit is {limits.payload}")
        found = cls(Kind(kind), head, payload, receives, slots)
        if data.nbytes - cls.SIZE != found.inline:
            raise ProtocolError(f"a message of {data.nbytes} bytes for a body of {found.body}")
        if found.kind is not Kind.DATA and found.body:
            raise ProtocolError(f"a {found.kind.name} with a body")
        return found
