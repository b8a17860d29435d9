"""What a provider of RDMA verbs does; the words are those of ibv_post_send(3) and ibv_poll_cq(3).

Nothing here waits: work is posted to a queue pair, and its completion is polled. All methods are
called on one event loop.
"""

from __future__ import annotations

import enum
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from vmferry.api.transport import Address
from vmferry_transports.rdma.greeting import Endpoint

__all__ = ["Completion", "Device", "Opcode", "Provider", "QueuePair", "Region", "Remote"]


class Opcode(enum.IntEnum):
    """What a completion tells of."""

    SEND = 0
    WRITE = 1
    RECEIVE = 2
    """A SEND of the peer's has come into a posted receive."""
    RECEIVE_WRITE = 3
    """A WRITE of the peer's has come; it used up a posted receive for its immediate."""


class Completion(msgspec.Struct, frozen=True):
    """One entry of a completion queue.

    Attributes:
        opcode: what was done.
        work: number that was given when the work was posted.
        size: bytes that came.
        immediate: of a WRITE that came.
        error: why the work failed, ``""`` if it did not. The queue pair is dead after a failure.

    """

    opcode: Opcode
    work: int = 0
    size: int = 0
    immediate: int = 0
    error: str = ""


class Region(ABC):
    """Registered memory.

    Attributes:
        view: the memory.
        address: by which the peer names its start.
        key: that allows the peer to write, 0 if it may not.

    """

    view: memoryview
    address: int = 0
    key: int = 0

    @abstractmethod
    def close(self) -> None:
        """Let go of the memory. May be called twice."""


class Remote(msgspec.Struct, frozen=True):
    """An endpoint of the peer's, with the descriptors that came with it."""

    endpoint: Endpoint
    descriptors: Sequence[int] = ()


class QueuePair(ABC):
    """A reliable connection with its completion queue."""

    @property
    @abstractmethod
    def descriptor(self) -> int:
        """Readable when there may be completions."""

    @abstractmethod
    def endpoint(self) -> Remote:
        """What the peer must know; the descriptors stay this end's to close."""

    @abstractmethod
    def told(self) -> None:
        """Let go of what was only there to be given to the peer; it has been."""

    @abstractmethod
    def connect(self, remote: Remote) -> None:
        """Connect to the peer's endpoint, and take over its descriptors, also on failure.

        Raises:
            LinkError: what the peer gave cannot be used.

        """

    @abstractmethod
    def post_receive(self, work: int, region: Region, offset: int, size: int) -> None:
        """Give a buffer for the next SEND or WRITE that comes."""

    @abstractmethod
    def post_send(self, work: int, region: Region, offset: int, size: int) -> None:
        """Send from registered memory, which stays untouched until the completion."""

    @abstractmethod
    def post_write(
        self, work: int, region: Region, offset: int, size: int, where: int, immediate: int
    ) -> None:
        """Write at offset ``where`` of the peer's landing zone, and tell it ``immediate``."""

    @abstractmethod
    def poll(self) -> list[Completion]:
        """Return what has completed, and arm ``descriptor`` for what follows."""

    @abstractmethod
    def close(self) -> None:
        """End the connection. May be called twice."""


class Device(ABC):
    """An open device with a protection domain."""

    @abstractmethod
    def register(self, size: int, *, remote: bool = False) -> Region:
        """Allocate and register memory; ``remote`` lets the peer write to it.

        Raises:
            LinkError: it cannot be had.

        """

    def borrow(self, view: memoryview) -> Region | None:
        """Register a caller's memory if that costs nothing; it is read while work is posted.

        ``None`` if it must be copied to registered memory first.
        """
        return None

    @abstractmethod
    def queue_pair(self, landing: Region, sends: int, receives: int) -> QueuePair:
        """Make a queue pair for so many outstanding sends and receives, with its landing zone."""

    @abstractmethod
    def close(self) -> None:
        """Close the device, when its regions and queue pairs are closed. May be called twice."""


class Provider(ABC):
    """Devices, and how two ends find each other.

    Attributes:
        name: as in the greeting, at most 16 characters.

    """

    name: str

    @abstractmethod
    def open(self) -> Device:
        """Open a device. Raises ``LinkError`` if there is none, saying what is missing."""

    @abstractmethod
    async def connect(self, address: Address) -> socket.socket:
        """Return a non-blocking stream to the listener. Raises ``LinkError``."""

    @abstractmethod
    async def listen(self, address: Address) -> tuple[socket.socket, int]:
        """Return a non-blocking listening socket and its port. Raises ``InputError``."""

    def identity(self, sock: socket.socket) -> str:
        """Return who is at the other end of a stream, ``""`` if that is not known.

        Raises:
            LinkError: it is somebody who must not be there.

        """
        return ""
