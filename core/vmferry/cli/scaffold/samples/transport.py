"""Frames over TCP within this machine, one socket for each lane."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from vmferry.api import (
    Address,
    Connection,
    Frame,
    Lane,
    Limits,
    Listener,
    Options,
    PeerInfo,
    Transport,
)
from vmferry.errors import ConnectionLost, InputError, LinkError, ProtocolError

_GREETING = struct.Struct(">8s16sBB")
_MAGIC = b"frames-1"
_SIZES = struct.Struct(">II")
_END = 0xFFFFFFFF
_BUFFER = 1 << 20


class LoopbackOptions(Options, frozen=True, kw_only=True):
    """Options of the ``loopback`` transport plugin."""

    timeout: Annotated[
        float,
        msgspec.Meta(gt=0, description="longest greeting of a peer", extra={"unit": "seconds"}),
    ] = 10.0


class LoopbackLane(Lane):
    """One socket. A frame is the lengths of head and payload, and both; ``_END`` ends the lane."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits
    ) -> None:
        self._reader, self._writer, self._limits = reader, writer, limits
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Frame | None] | None = None
        writer.transport.set_write_buffer_limits(_BUFFER)

    async def send(self, head: bytes, payload: memoryview | bytes = b"") -> None:
        """Wait for room, then hand over a copy of the frame at once: nothing comes between."""
        size = memoryview(payload).nbytes
        if len(head) > self._limits.head or size > self._limits.payload:
            raise ValueError(f"head of {len(head)} and payload of {size} bytes exceed the limits")
        await self._write(_SIZES.pack(len(head), size) + head + bytes(payload))

    async def _write(self, data: bytes) -> None:
        async with self._turn:
            with _losses():
                await self._writer.drain()
            if self._writer.is_closing():
                raise ConnectionLost("the connection has ended")
            self._writer.write(data)

    async def receive(self) -> Frame | None:
        """Go on with the read that a cancelled call has left; an end stays the end."""
        if self._next is None:
            self._next = asyncio.create_task(self._read())
            self._next.add_done_callback(_look_at)
        frame = await asyncio.shield(self._next)
        if frame is not None:
            self._next = None
        return frame

    async def _read(self) -> Frame | None:
        try:
            with _losses():
                head, payload = _SIZES.unpack(await self._reader.readexactly(_SIZES.size))
                if head == payload == _END:
                    self._writer.close()
                    return None
                return await self._body(head, payload)
        except BaseException:
            self.abort()
            raise

    async def _body(self, head: int, payload: int) -> Frame:
        if head > self._limits.head or payload > self._limits.payload:
            raise ProtocolError(f"a frame of {head} and {payload} bytes exceeds the limits")
        first = await self._reader.readexactly(head)
        buffer = self._limits.allocate(payload)
        buffer[:] = await self._reader.readexactly(payload)
        return Frame(first, buffer)

    async def close(self) -> None:
        """Send the end, read on to the peer's: a socket closed too soon could lose what it sent."""
        with contextlib.suppress(ConnectionLost, ProtocolError):
            await self._write(_SIZES.pack(_END, _END))
            while await self.receive() is not None:
                pass
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Drop the socket; the peer misses the end, and so knows."""
        self._writer.transport.abort()


def _look_at(read: asyncio.Task[Frame | None]) -> None:
    """Nobody may be waiting any more when a read fails: that is no error of its own."""
    if not read.cancelled():
        read.exception()


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:
        raise ConnectionLost(f"the connection is lost: {error}") from error


class LoopbackConnection(Connection):
    """Lanes that end together."""

    def __init__(self, lanes: Sequence[LoopbackLane], peer: str) -> None:
        self._lanes, self._peer = lanes, PeerInfo(address=peer)

    @property
    def lanes(self) -> Sequence[LoopbackLane]:
        """One for each socket."""
        return self._lanes

    @property
    def peer(self) -> PeerInfo:
        """Address of the other end."""
        return self._peer

    async def close(self) -> None:
        """Close all lanes."""
        await asyncio.gather(*(lane.close() for lane in self._lanes))

    def abort(self) -> None:
        """Drop all lanes."""
        for lane in self._lanes:
            lane.abort()


class LoopbackListener(Listener):
    """Puts sockets together that have greeted with one name."""

    def __init__(self, limits: Limits, timeout: float) -> None:
        self._limits, self._timeout = limits, timeout
        self._parts: dict[bytes, dict[int, LoopbackLane]] = {}
        self._ready: asyncio.Queue[LoopbackConnection | None] = asyncio.Queue()
        self._greeting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._address = Address(scheme="")

    async def start(self, address: Address) -> None:
        """Listen. Raises ``OSError``."""
        self._server = await asyncio.start_server(self._arrived, address.host, address.port)
        port = self._server.sockets[0].getsockname()[1]
        self._address = msgspec.structs.replace(address, port=port)

    @property
    def address(self) -> Address:
        """With the port that was taken."""
        return self._address

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._greet(reader, writer))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)
        if_not_begun = writer.transport.abort
        task.add_done_callback(lambda task: if_not_begun() if task.cancelled() else None)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                greeting = _GREETING.unpack(await reader.readexactly(_GREETING.size))
            magic, name, number, count = greeting
            if magic != _MAGIC or not number < count <= self._limits.lanes:
                raise ProtocolError("a peer did not greet as it should")
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, (OSError, EOFError, TimeoutError, ProtocolError)):
                return
            raise
        self._add(name, number, count, LoopbackLane(reader, writer, self._limits), writer)

    def _add(
        self, name: bytes, number: int, count: int, lane: LoopbackLane, writer: asyncio.StreamWriter
    ) -> None:
        parts = self._parts.setdefault(name, {})
        parts[number] = lane
        if len(parts) == count:
            del self._parts[name]
            host, port = writer.get_extra_info("peername")[:2]
            lanes = [parts[place] for place in range(count)]
            self._ready.put_nowait(LoopbackConnection(lanes, f"{host}:{port}"))

    async def accept(self) -> Connection:
        """The next one whose lanes are all there."""
        connection = await self._ready.get()
        if connection is None:
            self._ready.put_nowait(None)
            raise ConnectionLost(f"the listener at {self.address} was closed")
        return connection

    async def close(self) -> None:
        """Stop listening, drop what nobody accepted."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in self._greeting:
            task.cancel()
        for parts in self._parts.values():
            for lane in parts.values():
                lane.abort()
        while not self._ready.empty():
            if (connection := self._ready.get_nowait()) is not None:
                connection.abort()
        self._ready.put_nowait(None)


class LoopbackTransport(Transport[LoopbackOptions]):
    """``loopback://127.0.0.1:PORT``."""

    api_version = 1
    name = "loopback"
    summary = "TCP within this machine, neither encrypted nor authenticated"
    options_type = LoopbackOptions

    async def connect(self, address: Address, *, lanes: int, limits: Limits) -> Connection:
        """Open a socket for each lane, and greet on it."""
        _check(address)
        name, made = os.urandom(16), list[LoopbackLane]()
        try:
            for number in range(lanes):
                reader, writer = await asyncio.open_connection(address.host, address.port)
                made.append(LoopbackLane(reader, writer, limits))
                writer.write(_GREETING.pack(_MAGIC, name, number, lanes))
        except BaseException as error:
            for lane in made:
                lane.abort()
            if isinstance(error, OSError):
                raise LinkError(f"nobody answers at {address}: {error}") from error
            raise
        return LoopbackConnection(made, str(address))

    async def listen(self, address: Address, *, limits: Limits) -> Listener:
        """Take the port."""
        _check(address)
        listener = LoopbackListener(limits, self.options.timeout)
        try:
            await listener.start(address)
        except OSError as error:
            raise InputError(f"cannot listen at {address}: {error}; choose a free port") from error
        return listener


def _check(address: Address) -> None:
    """Strangers must not be able to connect, since nobody is asked who he is."""
    try:
        safe = ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        safe = False
    if not safe:
        raise InputError(f"{address} is not within this machine; write loopback://127.0.0.1:PORT")
