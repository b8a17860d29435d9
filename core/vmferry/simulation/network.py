"""The network between simulated hosts, with faults on demand."""

from __future__ import annotations

import asyncio
import enum
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from random import Random

from vmferry.api.plugin import NoOptions
from vmferry.api.transport import Address, Connection, Limits, Listener, Transport
from vmferry.errors import ConnectionLost, InputError, LinkError
from vmferry.simulation.connection import FrameEvent, SimConnection, SimLink
from vmferry.simulation.lanes import LinkParameters, Parcel
from vmferry.simulation.process import SimProcess
from vmferry.simulation.trace import Trace

__all__ = ["Fate", "SimListener", "SimNetwork", "SimTransport", "Tamper"]


class Fate(enum.Enum):
    """What becomes of a frame."""

    DELIVER = "deliver"
    """It arrives."""
    CORRUPT = "corrupt"
    """It arrives with one byte of its payload changed; without payload, as it is."""
    GARBLE = "garble"
    """It arrives with one byte of its head changed."""
    CUT = "cut"
    """The connection is lost while it is under way."""


Tamper = Callable[[FrameEvent], Fate]


def deliver_all(event: FrameEvent) -> Fate:
    """Harm nothing."""
    return Fate.DELIVER


def ignore(event: FrameEvent) -> None:
    """Nobody wants to know."""


class SimNetwork:
    """All hosts' network.

    Args:
        parameters: what every connection is like.
        random: decides jitter and what gets through when a connection is lost.
        trace: notes every frame.

    Attributes:
        tamper: called for every frame that goes onto a wire; decides its fate.
        witness: called for every frame that is taken from its lane.
        frames: how many frames went onto a wire.
        payload: bytes of payload among them.
        refused_until: nobody can connect before that time.
        links: every connection ever made.

    """

    def __init__(self, parameters: LinkParameters, random: Random, trace: Trace) -> None:
        self.parameters, self._random, self._trace = parameters, random, trace
        self.tamper: Tamper = deliver_all
        self.witness: Callable[[FrameEvent], None] = ignore
        self._replays: list[FrameEvent] = []
        self.frames = 0
        self.payload = 0
        self.refused_until = 0.0
        self.links: list[SimLink] = []
        self._listeners: dict[tuple[str, int], SimListener] = {}

    def transport(self, process: SimProcess) -> SimTransport:
        """The transport plugin as ``process`` sees it."""
        return SimTransport(self, process)

    def listen(self, process: SimProcess, port: int, limits: Limits) -> SimListener:
        """Take a port of the process's host; 0 is a free one."""
        process.check()
        taken = [number for host, number in self._listeners if host == process.host]
        port = port or max(taken, default=7419) + 1
        if port in taken:
            raise InputError(f"port {port} of {process.host} is taken")
        listener = SimListener(self, process, port, limits)
        self._listeners[process.host, port] = listener
        return listener

    def forget(self, listener: SimListener) -> None:
        """Free the listener's port."""
        self._listeners.pop((listener.process.host, listener.address.port), None)

    async def connect(
        self, process: SimProcess, address: Address, lanes: int, limits: Limits
    ) -> SimConnection:
        """Make a connection, which takes a round trip."""
        process.check()
        delay = 2 * self.parameters.latency + self._random.random() * self.parameters.jitter
        await asyncio.sleep(delay)
        process.check()
        listener = self._listeners.get((address.host, address.port))
        if not listener or asyncio.get_running_loop().time() < self.refused_until:
            raise LinkError(f"nobody answers at {address}")
        if lanes > listener.limits.lanes:
            raise LinkError(f"{address} takes {listener.limits.lanes} lanes, not {lanes}")
        return self._join(process, listener, lanes, limits)

    def _join(
        self, process: SimProcess, listener: SimListener, lanes: int, limits: Limits
    ) -> SimConnection:
        link = SimLink(len(self.links), self.parameters, self._random, self._judge, self._witnessed)
        self.links.append(link)
        near = SimConnection(link, process, limits)
        far = SimConnection(link, listener.process, listener.limits)
        link.join(near, far, lanes)
        listener.offer(far)
        self._trace.add("connect", link.number, process.host, str(listener.address), lanes)
        return near

    def _judge(self, event: FrameEvent) -> Parcel:
        parcel = event.parcel
        self.frames += 1
        self.payload += len(parcel.payload)
        fate = self.tamper(event)
        where = (event.link.number, event.sender, event.lane)
        sizes = (len(parcel.head), zlib.crc32(parcel.head), len(parcel.payload))
        self._trace.add("frame", *where, *sizes, fate.value)
        if fate is Fate.CUT:
            event.link.cut("the network lost the connection")
        self._replay(event)
        return self._spoilt(parcel, fate)

    def _spoilt(self, parcel: Parcel, fate: Fate) -> Parcel:
        if fate is Fate.CORRUPT and parcel.payload:
            return replace(parcel, payload=self._spoil(parcel.payload))
        if fate is Fate.GARBLE and parcel.head:
            return replace(parcel, head=self._spoil(parcel.head))
        return parcel

    def _witnessed(self, event: FrameEvent) -> None:
        self.witness(event)

    def replay(self, event: FrameEvent) -> None:
        """Deliver a frame of an old connection again on the next, behind its sender's first."""
        self._replays.append(event)

    def _replay(self, first: FrameEvent) -> None:
        for event in list(self._replays):
            if event.sender == first.sender and event.link is not first.link and not first.lane:
                self._replays.remove(event)
                self._trace.add("replay", first.link.number, event.sender, event.lane)
                first.link.end_of(event.sender).inject(event.lane, event.parcel)

    def _spoil(self, payload: bytes) -> bytes:
        spoilt = bytearray(payload)
        spoilt[self._random.randrange(len(spoilt))] ^= self._random.randint(1, 255)
        return bytes(spoilt)

    def cut(self, knows: str = "") -> None:
        """Lose every connection; the ends on the host that ``knows`` learn at once."""
        self._trace.add("cut")
        for link in self.links:
            end = link.end_of(knows) if knows else None
            link.cut("the network lost the connection", end)

    def stall(self, seconds: float, sender: str = "") -> None:
        """Let nothing through on the present connections for a while; nothing is lost.

        With ``sender`` only what that host sends is held up.
        """
        self._trace.add("stall", seconds, sender)
        for link in self.links:
            link.stall(asyncio.get_running_loop().time() + seconds, sender)

    def refuse(self, seconds: float) -> None:
        """Let nobody connect for a while."""
        self._trace.add("refuse", seconds)
        self.refused_until = asyncio.get_running_loop().time() + seconds


class SimListener(Listener):
    """Accepts connections at one port."""

    def __init__(self, network: SimNetwork, process: SimProcess, port: int, limits: Limits) -> None:
        self.process, self.limits = process, limits
        self._network = network
        self._address = Address(scheme="sim", host=process.host, port=port)
        self._offered: deque[SimConnection] = deque()
        self._news = asyncio.Event()
        self._closed = False
        process.at_death(self._end)

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self._address

    def offer(self, connection: SimConnection) -> None:
        """Queue a connection for ``accept``."""
        self._offered.append(connection)
        self._news.set()

    async def accept(self) -> Connection:
        """The next connection."""
        while not self._offered:
            if self._closed:
                raise ConnectionLost(f"the listener at {self._address} was closed")
            self._news.clear()
            await self._news.wait()
        self.process.check()
        return self._offered.popleft()

    def _end(self) -> None:
        self._closed = True
        self._network.forget(self)
        self._news.set()
        while self._offered:
            self._offered.popleft().abort()

    async def close(self) -> None:
        """Stop listening; connections that nobody accepted are lost."""
        self._end()


class SimTransport(Transport[NoOptions]):
    """Connections of one process over the simulated network."""

    api_version = 1
    name = "sim"
    summary = "connections within a simulation"

    def __init__(self, network: SimNetwork, process: SimProcess) -> None:
        super().__init__()
        self._network, self._process = network, process

    async def connect(self, address: Address, *, lanes: int, limits: Limits) -> Connection:
        """Connect to ``sim://HOST:PORT``."""
        if lanes < 2:
            raise InputError(f"a connection has at least 2 lanes, not {lanes}")
        return await self._network.connect(self._process, address, lanes, limits)

    async def listen(self, address: Address, *, limits: Limits) -> Listener:
        """Listen on this host; the address's host must be its name, or empty."""
        if address.host not in {"", self._process.host}:
            raise InputError(f"{address} is not an address of {self._process.host}")
        return self._network.listen(self._process, address.port, limits)
