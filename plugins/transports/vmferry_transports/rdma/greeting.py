"""What both ends tell each other before their queue pairs are connected.

::

    offset 0   8 bytes  "vmferryR"
           8   u16      version, 1
          10   u16      why the listener refuses, or 0
          12   16 bytes name of the provider, with zero bytes after it
          28   u16      number of lanes
          30   u16      slots of each lane's landing zone
          32   u32      bytes of a slot
          36   64 bytes for each lane, see ``Endpoint``

The connecting end greets, the listener answers in kind, and the connecting end says with one zero
byte that it is ready. The socket then stays: its end is the end of the connection.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

import msgspec

from vmferry.errors import LinkError

__all__ = ["VERSION", "Endpoint", "Greeting", "Refusal"]

VERSION = 1
_MAGIC = b"vmferryR"
_LAYOUT = struct.Struct("!8sHH16sHHI")
_ENDPOINT = struct.Struct("!QIQ44s")
_LEAST_SLOT, _MOST_SLOT = 4096, 16 << 20
_LEAST_SLOTS, _MOST_SLOTS = 4, 1024
_MOST_ZONE = 256 << 20
_MOST_LANES = 64


class Refusal(enum.IntEnum):
    """Why a listener does not take a connection."""

    NONE = 0
    VERSION = 1
    LANES = 2
    PROVIDER = 3
    BUSY = 4


_TEXTS = {
    Refusal.VERSION: f"speaks another version of the transport than {VERSION}",
    Refusal.LANES: "does not take that many lanes; ask for fewer",
    Refusal.PROVIDER: "uses another provider; set the same one at both ends",
    Refusal.BUSY: "has too many connections waiting; try again",
}


class Endpoint(msgspec.Struct, frozen=True):
    """Where a queue pair and its landing zone are.

    Attributes:
        address: of the landing zone.
        key: that allows to write there.
        size: of the landing zone in bytes.
        private: 44 bytes of the provider's own.

    """

    address: int
    key: int
    size: int
    private: bytes = b""


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """A greeting or its answer."""

    START = _LAYOUT.size

    provider: str
    slot: int
    slots: int
    endpoints: Sequence[Endpoint] = ()
    lanes: int = 0
    version: int = VERSION
    refusal: int = Refusal.NONE

    @property
    def rest(self) -> int:
        """Bytes that follow the first ``START``."""
        return 0 if self.refusal else self.lanes * _ENDPOINT.size

    def encode(self) -> bytes:
        """Return all its bytes."""
        start = _LAYOUT.pack(
            _MAGIC,
            self.version,
            self.refusal,
            self.provider.encode(),
            self.lanes,
            self.slots,
            self.slot,
        )
        return start + b"".join(
            _ENDPOINT.pack(each.address, each.key, each.size, each.private)
            for each in self.endpoints
        )

    @classmethod
    def decode(cls, start: bytes) -> Greeting:
        """Take apart the first ``START`` bytes.

        Raises:
            LinkError: they are no greeting, or of sizes that nobody has.

        """
        magic, version, refusal, name, lanes, slots, slot = _LAYOUT.unpack(start)
        if magic != _MAGIC:
            raise LinkError("what it sent is no greeting of vmferry's; is the port right?")
        if lanes > _MOST_LANES:
            raise LinkError(f"{lanes} lanes; at most {_MOST_LANES} are possible")
        found = cls(
            provider=name.rstrip(b"\0").decode("ascii", errors="replace"),
            slot=slot,
            slots=slots,
            lanes=lanes,
            version=version,
            refusal=refusal,
        )
        if not refusal:
            found.check_zone()
        return found

    def check_zone(self) -> None:
        """Raise ``LinkError`` when the landing zones have an impossible size."""
        if not (
            _LEAST_SLOT <= self.slot <= _MOST_SLOT
            and _LEAST_SLOTS <= self.slots <= _MOST_SLOTS
            and self.slot * self.slots <= _MOST_ZONE
        ):
            raise LinkError(f"{self.slots} slots of {self.slot} bytes")

    def with_endpoints(self, rest: bytes) -> Greeting:
        """Add the endpoints. Raises ``LinkError`` when a landing zone has another size."""
        found = [Endpoint(*each) for each in _ENDPOINT.iter_unpack(rest)]
        if any(each.size != self.slot * self.slots for each in found):
            raise LinkError("a landing zone of another size than announced")
        return msgspec.structs.replace(self, endpoints=found)

    def check_answer(self, answer: Greeting) -> None:
        """Raise ``LinkError`` when ``answer`` refuses this greeting or answers another one."""
        if answer.refusal:
            text = _TEXTS.get(Refusal(answer.refusal)) if answer.refusal in _REFUSALS else None
            raise LinkError(text or f"refuses the connection, reason {answer.refusal}")
        if (answer.lanes, answer.provider) != (self.lanes, self.provider):
            raise LinkError("answered another greeting than the one sent")


_REFUSALS = frozenset(Refusal)
