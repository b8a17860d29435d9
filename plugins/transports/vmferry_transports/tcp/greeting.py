"""The greeting: what both ends say on each socket before the first frame.

::

    offset 0   8 bytes  "vmferry" and a zero byte
           8   u16      version, 1
          10   u16      0 in a greeting; in the answer why the listener refuses, or 0
          12   16 bytes session: chosen at random by the connecting end, the same on all lanes
          28   u16      number of this lane, from 0
          30   u16      number of lanes

32 bytes in network order; the answer repeats session and lane. The listener makes one connection
of all sockets of a session.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from vmferry.errors import LinkError

__all__ = ["GREETING_SIZE", "MAGIC", "VERSION", "Greeting", "Refusal"]

MAGIC = b"vmferry\0"
VERSION = 1
_LAYOUT = struct.Struct("!8sHH16sHH")
GREETING_SIZE = _LAYOUT.size


class Refusal(enum.IntEnum):
    """Why a listener does not take a socket."""

    NONE = 0
    VERSION = 1
    LANES = 2
    SESSION = 3
    BUSY = 4
    NEEDS_TLS = 5
    NO_TLS = 6
    NOT_ALLOWED = 7


_TEXTS = {
    Refusal.VERSION: f"speaks another version of the transport than {VERSION}",
    Refusal.LANES: "does not take that many lanes; ask for fewer",
    Refusal.SESSION: "says this lane is there already, or belongs to somebody else",
    Refusal.BUSY: "has too many connections waiting; try again",
    Refusal.NEEDS_TLS: "wants TLS; set tls_cert, tls_key and tls_ca here too",
    Refusal.NO_TLS: "speaks no TLS; set tls_cert, tls_key and tls_ca there too, or nowhere",
    Refusal.NOT_ALLOWED: "does not let this host's certificate in; add its name to allow there",
}


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """A greeting or its answer."""

    session: bytes
    lane: int
    lanes: int
    version: int = VERSION
    refusal: int = Refusal.NONE

    def encode(self) -> bytes:
        """Return its ``GREETING_SIZE`` bytes."""
        return _LAYOUT.pack(MAGIC, self.version, self.refusal, self.session, self.lane, self.lanes)

    @classmethod
    def decode(cls, data: bytes) -> Greeting:
        """Take apart ``GREETING_SIZE`` bytes. Raises ``LinkError`` when they are no greeting."""
        magic, version, refusal, session, lane, lanes = _LAYOUT.unpack(data)
        if magic != MAGIC:
            raise LinkError("what it sent is no vmferry greeting; is the port right?")
        return cls(session=session, lane=lane, lanes=lanes, version=version, refusal=refusal)

    def check_answer(self, answer: Greeting) -> None:
        """Raise ``LinkError`` when ``answer`` refuses this greeting or answers another one."""
        if answer.refusal:
            text = _TEXTS.get(Refusal(answer.refusal)) if answer.refusal in _KNOWN else None
            raise LinkError(text or f"refuses the connection, reason {answer.refusal}")
        if (answer.session, answer.lane) != (self.session, self.lane):
            raise LinkError("answered another greeting than the one sent")

    def refused(self, refusal: Refusal) -> Greeting:
        """Return the answer that refuses this greeting."""
        return msgspec.structs.replace(self, version=VERSION, refusal=refusal)


_KNOWN = frozenset(Refusal)
