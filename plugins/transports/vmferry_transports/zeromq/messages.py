"""Messages of a lane, as they are put into ZeroMQ's.

A message has one part, or two if it carries a payload::

    offset 0   u16  magic 0x5A46
           2   u8   kind, see ``Kind``
           3   u8   0
           4   u32  bytes of the head, which follows the header
           8   u32  bytes of the payload: the second part
          12   u64  number of this message in its direction of the lane, from 0
          20   u64  cost of all frames that the sender of this message has received and consumed
          28   head

    greeting, after the header of a HELLO or WELCOME
               u16  version, 1
               u16  why the listener refuses, or 0
               16 B session: chosen at random by the connecting end, the same on all lanes
               u16  number of this lane, from 0
               u16  number of lanes
               u32  window of the sender: the cost that it takes before it consumes any

All numbers are in network order.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from vmferry.api.transport import Limits
from vmferry.errors import LinkError, ProtocolError

__all__ = ["LEAST_COST", "VERSION", "Greeting", "Header", "Kind", "Refusal", "cost", "largest_part"]

VERSION = 1
LEAST_COST = 16 << 10
"""Cost of a small frame; bounds how many are under way."""

_MAGIC = 0x5A46
_CURVE = 64
"""CurveZMQ's MESSAGE command adds 33 bytes, https://rfc.zeromq.org/spec/26/."""

_HEADER = struct.Struct("!HBBIIQQ")
_GREETING = struct.Struct("!HH16sHHI")


def cost(head: int, payload: int) -> int:
    """Return what a frame takes of a window."""
    return max(LEAST_COST, head + payload)


def largest_part(limits: Limits) -> int:
    """Return how many bytes a part of a message may have, with what CURVE adds to it."""
    return max(_HEADER.size + max(limits.head, _GREETING.size), limits.payload) + _CURVE


class Kind(enum.IntEnum):
    """What a message is for."""

    HELLO = 1
    WELCOME = 2
    DATA = 3
    CREDIT = 4
    """Only says what was consumed."""
    END = 5
    """The last message of its direction, in good order."""
    PROBE = 6
    RESET = 7
    """The connection is not known, or aborted; its number does not count."""


_KINDS = frozenset(Kind)


class Header(msgspec.Struct, frozen=True):
    """The header of a message."""

    SIZE = _HEADER.size

    kind: Kind
    head: int = 0
    payload: int = 0
    number: int = 0
    consumed: int = 0

    def encode(self) -> bytes:
        """Return its ``SIZE`` bytes."""
        return _HEADER.pack(
            _MAGIC, self.kind, 0, self.head, self.payload, self.number, self.consumed
        )

    @classmethod
    def decode(cls, first: memoryview, payload: int | None, limits: Limits) -> Header:
        """Take the header off a message.

        Args:
            first: the first part.
            payload: size of the second part, ``None`` if there is none.
            limits: of this end.

        Raises:
            ProtocolError: the parts are no message, or larger than ``limits``.

        """
        if first.nbytes < cls.SIZE:
            raise ProtocolError(f"no message: {first.nbytes} bytes")
        magic, kind, zero, head, size, number, consumed = _HEADER.unpack_from(first)
        if magic != _MAGIC or kind not in _KINDS or zero:
            raise ProtocolError(f"no message: magic {magic:#06x}, kind {kind}")
        if (
            head != first.nbytes - cls.SIZE
            or size != (payload or 0)
            or (payload is not None) > size
        ):
            raise ProtocolError(f"a message of {head}+{size} bytes that has other sizes")
        _check_sizes(Kind(kind), head, size, limits)
        return cls(Kind(kind), head, size, number, consumed)


def _check_sizes(kind: Kind, head: int, payload: int, limits: Limits) -> None:
    expected = _GREETING.size if kind in (Kind.HELLO, Kind.WELCOME) else 0
    if kind is not Kind.DATA and (head != expected or payload):
        raise ProtocolError(f"a {kind.name} with {head}+{payload} bytes")
    if kind is Kind.DATA and head > limits.head:
        raise ProtocolError(f"head of {head} bytes; the limit is {limits.head}")
    if payload > limits.payload:
        raise ProtocolError(f"payload of {payload} bytes; the limit is {limits.payload}")


class Refusal(enum.IntEnum):
    """Why a listener does not take a lane."""

    NONE = 0
    VERSION = 1
    LANES = 2
    SESSION = 3
    BUSY = 4
    CLOSED = 5


_TEXTS = {
    Refusal.VERSION: f"speaks another version of the transport than {VERSION}",
    Refusal.LANES: "does not take that many lanes; ask for fewer",
    Refusal.SESSION: "says this lane is there already, or belongs to somebody else",
    Refusal.BUSY: "has too many connections waiting; try again",
    Refusal.CLOSED: "takes no more connections",
}


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """What both ends say first on each lane; the answer repeats session, lane and lanes."""

    SIZE = _GREETING.size

    session: bytes
    lane: int
    lanes: int
    window: int
    version: int = VERSION
    refusal: int = Refusal.NONE

    def encode(self, kind: Kind) -> bytes:
        """Return the whole message."""
        body = _GREETING.pack(
            self.version, self.refusal, self.session, self.lane, self.lanes, self.window
        )
        return Header(kind, head=len(body)).encode() + body

    @classmethod
    def decode(cls, body: memoryview) -> Greeting:
        """Take apart what follows the header of a HELLO or WELCOME."""
        version, refusal, session, lane, lanes, window = _GREETING.unpack(body)
        return cls(
            session=session,
            lane=lane,
            lanes=lanes,
            window=window,
            version=version,
            refusal=refusal,
        )

    def check_answer(self, answer: Greeting) -> None:
        """Raise ``LinkError`` when ``answer`` refuses this greeting or answers another one."""
        if answer.refusal:
            text = _TEXTS.get(Refusal(answer.refusal)) if answer.refusal in _REFUSALS else None
            raise LinkError(text or f"refuses the connection, reason {answer.refusal}")
        if (answer.session, answer.lane) != (self.session, self.lane):
            raise LinkError("answered another greeting than the one sent")


_REFUSALS = frozenset(Refusal)
