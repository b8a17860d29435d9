"""Contract of a transport plugin: connections that carry frames in order, with back-pressure.

A ``Connection`` has independent ``Lane`` objects. Frames of one lane arrive whole, once and in
the order they were sent; nothing is promised between lanes. Lane 0 is the control lane; the engine
keeps bulk data off it so that a request is never queued behind a disk. Lane 1 carries the
hypervisor's stream, whose end a guest waits for while it stands still; the others carry disks. A
lane never drops a frame: it delivers it or the connection is lost, and both ends learn so.

A frame is a *head* (a few hundred bytes, encoded by the engine) and a *payload* (bulk data, often
empty). A transport does not look into either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Generic
from urllib.parse import parse_qsl, urlsplit

import msgspec

from vmferry.api.plugin import Capabilities, Grade, OptionsT, Plugin
from vmferry.errors import InputError

__all__ = [
    "Address",
    "Allocate",
    "Connection",
    "Frame",
    "Lane",
    "Limits",
    "Listener",
    "PeerInfo",
    "Transport",
    "TransportCapabilities",
]

Allocate = Callable[[int], memoryview]
"""Gives a writable buffer of exactly that many bytes for an arriving payload.

A transport may call it from any thread."""


def _fresh(size: int) -> memoryview:
    return memoryview(bytearray(size))


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer may send; checked before memory is allocated.

    Attributes:
        head: most bytes of a head.
        payload: most bytes of a payload.
        lanes: most lanes of a connection.
        allocate: where payloads are put.

    """

    head: int = 1 << 20
    payload: int = 16 << 20
    lanes: int = 64
    allocate: Allocate = _fresh


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a peer listens, from a URL such as ``tcp://host:7420`` or ``memory://name``.

    Attributes:
        scheme: names the transport.
        host: host name or address, without brackets; may be empty.
        port: 0 when none was given.
        user: who to log in as, in ``ssh://user@host``; may be empty.
        path: what follows the host, with its leading slash.
        query: decoded ``?key=value`` pairs.

    """

    scheme: str
    host: str = ""
    port: int = 0
    user: str = ""
    path: str = ""
    query: Mapping[str, str] = {}

    @classmethod
    def parse(cls, url: str) -> Address:
        """Take a URL apart. Raises ``InputError`` naming it when it is none."""
        try:
            parts = urlsplit(url)
            port = parts.port or 0
        except ValueError as error:
            raise InputError(f"{url!r} is not an address: {error}") from None
        if not parts.scheme or "://" not in url:
            raise InputError(f"{url!r} is not an address; write e.g. tcp://host:7420")
        if parts.password is not None:
            shown = url.replace(f":{parts.password}@", ":...@")
            raise InputError(f"{shown!r}: no password belongs into an address")
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=port,
            user=parts.username or "",
            path=parts.path,
            query=dict(parse_qsl(parts.query)),
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        query = "?" + "&".join(f"{k}={v}" for k, v in self.query.items()) if self.query else ""
        user = f"{self.user}@" if self.user else ""
        return f"{self.scheme}://{user}{host}{port}{self.path}{query}"


class PeerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end.

    Attributes:
        address: for people and logs.
        identity: name the transport has authenticated (e.g. a certificate's subject), or ``""``.
        encrypted: others on the network cannot read what is sent.

    """

    address: str
    identity: str = ""
    encrypted: bool = False


class Frame(msgspec.Struct, frozen=True):
    """One received frame. Both parts are the receiver's to keep."""

    head: memoryview | bytes
    payload: memoryview | bytes = b""


class TransportCapabilities(Capabilities, frozen=True, kw_only=True):
    """What a transport can do beyond the required core.

    Attributes:
        encryption: can keep others from reading.
        authentication: can tell who the peer is.
        lanes: lanes do not wait for each other.
        zero_copy: payloads are not copied by Python.

    """

    encryption: Grade = Grade.NONE
    authentication: Grade = Grade.NONE
    lanes: Grade = Grade.NATIVE
    zero_copy: Grade = Grade.NONE


class Lane(ABC):
    """One ordered, reliable, bidirectional sequence of frames."""

    @abstractmethod
    async def send(self, head: bytes, payload: memoryview | bytes = b"") -> None:
        """Hand over one frame; returns when the transport has taken it.

        Waits while the receiver does not keep up: at most a few frames or some MiB are buffered.
        Calls made one after the other are sent in that order; concurrent calls are queued whole,
        never mixed. On return ``payload`` is the caller's again. A cancelled call either sent the
        frame whole, not at all, or has broken the lane.

        Raises:
            ConnectionLost: the connection is gone; whether the frame arrived is not known.
            ValueError: head or payload is larger than the limits.

        """

    @abstractmethod
    async def receive(self) -> Frame | None:
        """Return the next frame, or ``None`` once the peer has closed the lane in good order.

        One caller at a time. A cancelled call loses no frame.

        Raises:
            ConnectionLost: the connection ended without being closed in good order.
            ProtocolError: what arrived is no frame, or exceeds the limits.

        """


class Connection(ABC):
    """Several lanes to one peer."""

    @property
    @abstractmethod
    def lanes(self) -> Sequence[Lane]:
        """All lanes, the control lane first. The same number, in the same order, at both ends."""

    @property
    @abstractmethod
    def peer(self) -> PeerInfo:
        """Who is at the other end."""

    @abstractmethod
    async def close(self) -> None:
        """Deliver what was sent, then end all lanes in good order. May be called twice.

        The peer's ``receive`` gives the frames still on their way and then ``None``.
        """

    @abstractmethod
    def abort(self) -> None:
        """End at once, without delivering; both ends get ``ConnectionLost``.

        May be called twice.
        """


class Listener(ABC):
    """Accepts connections."""

    @property
    @abstractmethod
    def address(self) -> Address:
        """Where it listens, with the port that was really taken."""

    @abstractmethod
    async def accept(self) -> Connection:
        """Return the next connection whose lanes are all there.

        A peer that fails its handshake (TLS, wrong greeting, too slow) is dropped and logged, and
        holds up nobody else.

        Raises:
            ConnectionLost: the listener was closed.

        """

    @abstractmethod
    async def close(self) -> None:
        """Stop listening. Accepted connections live on. May be called twice."""


class Transport(Plugin[OptionsT], ABC, Generic[OptionsT]):
    """Makes connections for one URL scheme, which is its name."""

    capabilities: ClassVar[TransportCapabilities] = TransportCapabilities()

    @abstractmethod
    async def connect(self, address: Address, *, lanes: int, limits: Limits) -> Connection:
        """Connect with ``lanes`` lanes (at least 2).

        Raises:
            LinkError: nobody answers there, or authentication failed; the message says which.
            InputError: the address or the options cannot be right.

        """

    @abstractmethod
    async def listen(self, address: Address, *, limits: Limits) -> Listener:
        """Listen at ``address``; port 0 takes a free one.

        Raises:
            InputError: the address cannot be listened on, or would be unsafe; says how to go on.

        """
