"""Connections inside one process: the contract of ``vmferry.api.transport``, written to be read.

Listeners have names: ``memory://left``. A listener without a name (``memory://``) takes a free
one. Names belong to the running event loop, so that loops of different tests do not meet. Nothing
here uses a thread, a clock or a random number: a run on a deterministic loop repeats exactly.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

from vmferry.api.plugin import Grade, NoOptions
from vmferry.api.transport import (
    Address,
    Connection,
    Frame,
    Lane,
    Limits,
    Listener,
    PeerInfo,
    Transport,
    TransportCapabilities,
)
from vmferry.errors import ConnectionLost, InputError, LinkError, ProtocolError, VmferryError

__all__ = ["MemoryTransport"]

_log = logging.getLogger(__name__)

_FRAMES = 8
"""Most frames that wait in one direction of a lane."""

_BYTES = 4 << 20
"""Bytes after which no further frame is taken; a single larger frame passes when it is alone."""


class _Pipe:
    """One direction of one lane: a bounded queue of frames that ends in order or breaks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._frames: deque[Frame] = deque()
        self._size = 0
        self._turn = asyncio.Lock()
        self._room, self._filled = asyncio.Event(), asyncio.Event()
        self._closed = False
        self._error: VmferryError | None = None

    async def put(self, head: bytes, payload: memoryview | bytes) -> None:
        async with self._turn:  # its waiters are served in the order in which they came
            while self._full() and not self._closed:
                self._room.clear()
                await self._room.wait()
            if self._closed:
                raise self._lost()
            self._append(head, payload)

    def _full(self) -> bool:
        return len(self._frames) >= _FRAMES or self._size >= _BYTES

    def _append(self, head: bytes, payload: memoryview | bytes) -> None:
        size = memoryview(payload).nbytes
        if len(head) > self.limits.head or size > self.limits.payload:
            self.end(ProtocolError(f"a frame of {len(head)}+{size} bytes exceeds the limits"))
            return
        kept = self.limits.allocate(size)
        kept[:] = memoryview(payload).cast("B")
        self._frames.append(Frame(bytes(head), kept))
        self._size += len(head) + size
        self._filled.set()

    async def get(self) -> Frame | None:
        while not self._frames:
            if self._closed:
                if self._error is None:
                    return None
                raise type(self._error)(str(self._error))
            self._filled.clear()
            await self._filled.wait()
        frame = self._frames.popleft()
        self._size -= len(frame.head) + len(frame.payload)
        self._room.set()
        return frame

    def end(self, error: VmferryError | None, *, drop: bool = False) -> None:
        """Take no more frames; what is queued is still delivered unless ``drop``."""
        if not self._closed:
            self._closed, self._error = True, error
        if drop:
            self._frames.clear()
            self._size, self._error = 0, self._error or error
        self._room.set()
        self._filled.set()

    def _lost(self) -> ConnectionLost:
        return ConnectionLost(str(self._error or "the connection is closed"))


class _MemoryLane(Lane):
    def __init__(self, limits: Limits, out: _Pipe, into: _Pipe) -> None:
        self._limits, self.out, self.into = limits, out, into

    async def send(self, head: bytes, payload: memoryview | bytes = b"") -> None:
        size = memoryview(payload).nbytes
        if len(head) > self._limits.head:
            raise ValueError(f"head of {len(head)} bytes; the limit is {self._limits.head}")
        if size > self._limits.payload:
            raise ValueError(f"payload of {size} bytes; the limit is {self._limits.payload}")
        await self.out.put(head, payload)

    async def receive(self) -> Frame | None:
        return await self.into.get()


class _MemoryConnection(Connection):
    def __init__(self, lanes: Sequence[_MemoryLane], peer: PeerInfo) -> None:
        self._lanes, self._peer, self._over = lanes, peer, False

    @property
    def lanes(self) -> Sequence[Lane]:
        return self._lanes

    @property
    def peer(self) -> PeerInfo:
        return self._peer

    async def close(self) -> None:
        """End both directions; a ``send`` that still waits for room gets ``ConnectionLost``."""
        self._over = True
        for lane in self._lanes:
            lane.out.end(None)
            lane.into.end(None)

    def abort(self) -> None:
        if self._over:
            return
        self._over = True
        error = ConnectionLost("the connection was aborted")
        for lane in self._lanes:
            lane.out.end(error, drop=True)
            lane.into.end(error, drop=True)


def _pair(
    lanes: int, here: Limits, there: Limits, name: str
) -> tuple[_MemoryConnection, _MemoryConnection]:
    """Return the connecting and the accepting end."""
    ours, theirs = [], []
    for _ in range(lanes):
        out, into = _Pipe(there), _Pipe(here)
        ours.append(_MemoryLane(here, out, into))
        theirs.append(_MemoryLane(there, into, out))
    return (
        _MemoryConnection(ours, PeerInfo(address=f"memory://{name}", encrypted=True)),
        _MemoryConnection(theirs, PeerInfo(address="memory://", encrypted=True)),
    )


class _MemoryListener(Listener):
    def __init__(self, names: dict[str, _MemoryListener], name: str, limits: Limits) -> None:
        self._names, self.name, self.limits = names, name, limits
        self._waiting: asyncio.Queue[_MemoryConnection | None] = asyncio.Queue()
        self._closed = False
        names[name] = self

    @property
    def address(self) -> Address:
        return Address(scheme="memory", host=self.name)

    def offer(self, connection: _MemoryConnection) -> None:
        self._waiting.put_nowait(connection)

    async def accept(self) -> Connection:
        connection = None if self._closed else await self._waiting.get()
        if connection is None:
            self._waiting.put_nowait(None)  # for whoever else waits
            raise ConnectionLost(f"the listener {self.address} is closed")
        return connection

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        del self._names[self.name]
        while not self._waiting.empty():
            if (connection := self._waiting.get_nowait()) is not None:
                _log.warning("%s: a connection nobody accepted is aborted", self.address)
                connection.abort()
        self._waiting.put_nowait(None)


_listeners: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _MemoryListener]] = (
    WeakKeyDictionary()
)


def _names() -> dict[str, _MemoryListener]:
    return _listeners.setdefault(asyncio.get_running_loop(), {})


def _name(address: Address) -> str:
    if address.scheme != "memory" or address.port or address.path or address.query:
        raise InputError(f"{address} is not an address of this transport; write memory://NAME")
    return address.host


class MemoryTransport(Transport[NoOptions]):
    """Connections within one event loop, for tests and simulations.

    At most 8 frames or 4 MiB wait in each direction of a lane. Payloads are copied once, into the
    receiver's ``limits.allocate``.
    """

    api_version = 1
    name = "memory"
    summary = "inside one process, for tests and simulations"
    options_type = NoOptions
    capabilities: ClassVar[TransportCapabilities] = TransportCapabilities(
        encryption=Grade.NATIVE, lanes=Grade.NATIVE
    )

    async def connect(self, address: Address, *, lanes: int, limits: Limits) -> Connection:
        """Connect at once; needs a listener on the same event loop."""
        name = _name(address)
        if lanes < 2:
            raise InputError(f"a connection needs at least 2 lanes, not {lanes}")
        listener = _names().get(name)
        if listener is None:
            raise LinkError(f"nobody listens at {address}")
        if lanes > min(limits.lanes, listener.limits.lanes):
            raise LinkError(f"{address} takes at most {listener.limits.lanes} lanes, not {lanes}")
        ours, theirs = _pair(lanes, limits, listener.limits, name)
        listener.offer(theirs)
        return ours

    async def listen(self, address: Address, *, limits: Limits) -> Listener:
        """Listen under a name that nobody has yet."""
        names, name = _names(), _name(address)
        if not name:
            name = next(str(n) for n in itertools.count(1) if str(n) not in names)
        if name in names:
            raise InputError(f"somebody listens at {address} already; choose another name")
        return _MemoryListener(names, name, limits)
