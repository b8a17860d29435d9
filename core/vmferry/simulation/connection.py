"""The two ends of a simulated connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from vmferry.api.transport import Connection, Frame, Lane, Limits, PeerInfo
from vmferry.errors import ConnectionLost, ProtocolError
from vmferry.simulation.lanes import LinkParameters, Parcel, Pipe, Wire
from vmferry.simulation.process import SimProcess

__all__ = ["FrameEvent", "SimConnection", "SimLane", "SimLink"]


@dataclass(frozen=True, slots=True)
class FrameEvent:
    """A frame that goes onto the wire.

    Attributes:
        link: the connection.
        sender: name of the host that sends.
        lane: number of the lane.
        parcel: the frame.

    """

    link: SimLink
    sender: str
    lane: int
    parcel: Parcel


class SimLane(Lane):
    """One end of one lane."""

    def __init__(self, end: SimConnection, out: Pipe, into: Pipe) -> None:
        self._end, self._out, self._into = end, out, into

    async def send(self, head: bytes, payload: memoryview | bytes = b"") -> None:
        """Copy the frame, as soon as there is room."""
        limits = self._end.limits
        if len(head) > limits.head or len(payload) > limits.payload:
            raise ValueError(f"a frame of {len(head)}+{len(payload)} bytes is beyond the limits")
        self._end.check_sending()
        await self._out.admit(len(head) + len(payload))
        self._end.check_sending()
        self._end.wire.put(self._out, Parcel(bytes(head), bytes(payload)))

    async def receive(self) -> Frame | None:
        """The next frame, copied to where the limits say."""
        while not self._into.inbox:
            if self._into.ended:
                return None
            self._end.check_receiving()
            await self._into.wait()
        self._end.process.check()
        parcel = self._into.inbox.popleft()
        self._into.release(parcel.size)
        self._into.ended = parcel.last
        if parcel.last:
            return None
        self._end.link.taken(self._end, self._into.number, parcel)
        self._end.process.check()
        return self._frame(parcel)

    def _frame(self, parcel: Parcel) -> Frame:
        limits = self._end.limits
        if len(parcel.head) > limits.head or len(parcel.payload) > limits.payload:
            self._end.abort()
            raise ProtocolError(f"a frame of {parcel.size} bytes is beyond the limits")
        if not parcel.payload:
            return Frame(parcel.head)
        buffer = limits.allocate(len(parcel.payload))
        buffer[:] = parcel.payload
        return Frame(parcel.head, buffer)


class SimConnection(Connection):
    """One end of a connection.

    Attributes:
        link: both ends.
        process: whose end it is.
        limits: what this end takes.
        wire: the way out.

    """

    def __init__(self, link: SimLink, process: SimProcess, limits: Limits) -> None:
        self.link, self.process, self.limits = link, process, limits
        self.wire: Wire
        self._out: list[Pipe] = []
        self._into: list[Pipe] = []
        self._lanes: list[SimLane] = []
        self._reason = ""
        self._peer_closed = False
        self._finished = asyncio.Event()
        self._ends_due = 0
        process.at_death(self.abort)

    def attach(self, out: list[Pipe], into: list[Pipe], wire: Wire) -> None:
        """Connect the pipes of both directions."""
        self._out, self._into, self.wire = out, into, wire
        self._lanes = [SimLane(self, *pipes) for pipes in zip(out, into, strict=True)]

    @property
    def lanes(self) -> Sequence[Lane]:
        """All lanes."""
        return self._lanes

    @property
    def peer(self) -> PeerInfo:
        """The other host."""
        return PeerInfo(address=f"sim://{self.link.other(self).process.host}")

    @property
    def open(self) -> bool:
        """Whether it can be used, as far as this end knows."""
        return not self._reason

    def inject(self, lane: int, parcel: Parcel) -> None:
        """Have the wire carry a frame that nobody here has sent."""
        if not self._reason and lane < len(self._out):
            self._out[lane].force(parcel.size)
            self.wire.put(self._out[lane], parcel)

    def check_receiving(self) -> None:
        """Raise ``ConnectionLost`` when nothing will arrive."""
        self.process.check()
        if self._reason:
            raise ConnectionLost(self._reason)

    def check_sending(self) -> None:
        """Raise ``ConnectionLost`` when nobody will receive."""
        self.check_receiving()
        if self._peer_closed:
            raise ConnectionLost("the peer has closed the connection")

    async def close(self) -> None:
        """Send the end of every lane and wait until the peer has it."""
        if not self._reason:
            self._leave("the connection was closed")
            self._discard()
            self._ends_due = len(self._out)
            for pipe in self._out:
                self.wire.put(pipe, Parcel(last=True))
        await self._finished.wait()

    def _leave(self, reason: str) -> None:
        self._reason = reason
        for pipe in self._out:
            pipe.refuse_senders(reason)
        for pipe in self._into:
            pipe.wake()

    def _discard(self) -> None:
        for pipe in self._into:
            pipe.discard()

    def abort(self) -> None:
        """Cut the connection; this end knows at once."""
        if not self._finished.is_set():
            self.link.cut("the connection was aborted", knows=self)
            self._discard()

    def lost(self, reason: str) -> None:
        """Learn that the connection is gone."""
        self._finished.set()
        if not self._reason:
            self._leave(reason)

    def deliver(self, pipe: Pipe, parcel: Parcel) -> None:
        """Take a frame that has arrived."""
        if parcel.last:
            self._peer_ends()
        pipe.arrive(parcel)
        if self._reason:
            pipe.discard()

    def _peer_ends(self) -> None:
        self._peer_closed = True
        for pipe in self._out:
            pipe.refuse_senders("the peer has closed the connection")
        self.link.other(self).end_arrived()

    def end_arrived(self) -> None:
        """Count the ends of lanes that have reached the peer."""
        self._ends_due -= 1
        if not self._ends_due:
            self._finished.set()


class SimLink:
    """A connection with both its ends.

    Args:
        number: of the connection, in the order they were made.
        parameters: what the network is like.
        random: decides what gets through when it is lost.
        judge: sees every frame; returns what is really sent.
        witness: sees every frame that is taken from its lane.

    """

    def __init__(
        self,
        number: int,
        parameters: LinkParameters,
        random: Random,
        judge: Callable[[FrameEvent], Parcel],
        witness: Callable[[FrameEvent], None],
    ) -> None:
        self.number = number
        self._parameters, self._random, self._judge = parameters, random, judge
        self._witness = witness
        self.ends: tuple[SimConnection, SimConnection]
        self._pipes: list[Pipe] = []
        self.dead = False

    def join(self, near: SimConnection, far: SimConnection, lanes: int) -> None:
        """Make the lanes between two ends."""
        self.ends = (near, far)
        there = [Pipe(lane, self._parameters.window) for lane in range(lanes)]
        back = [Pipe(lane, self._parameters.window) for lane in range(lanes)]
        self._pipes = there + back
        near.attach(there, back, self._wire(there, near, far))
        far.attach(back, there, self._wire(back, far, near))

    def _wire(self, pipes: list[Pipe], sender: SimConnection, receiver: SimConnection) -> Wire:
        def judge(pipe: Pipe, parcel: Parcel) -> Parcel:
            return self._judge(FrameEvent(self, sender.process.host, pipe.number, parcel))

        return Wire(pipes, self._parameters, self._random, judge, receiver.deliver)

    def other(self, end: SimConnection) -> SimConnection:
        """The opposite end."""
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    def end_of(self, host: str) -> SimConnection:
        """The end on that host."""
        return self.ends[0] if self.ends[0].process.host == host else self.ends[1]

    def taken(self, end: SimConnection, lane: int, parcel: Parcel) -> None:
        """A frame was taken from a lane at ``end``."""
        self._witness(FrameEvent(self, self.other(end).process.host, lane, parcel))

    def stall(self, until: float, sender: str = "") -> None:
        """Let nothing through before that time, or nothing of what that host sends."""
        for end in self.ends if not sender else (self.end_of(sender),):
            end.wire.stalled_until = max(end.wire.stalled_until, until)

    def cut(self, reason: str, knows: SimConnection | None = None) -> None:
        """Lose the connection: a random beginning of what is under way still gets through.

        The end that ``knows`` learns at once, the others after a while.
        """
        if self.dead:
            return
        self.dead = True
        for pipe in self._pipes:
            pipe.lose(self._random)
        for end in self.ends:
            end.wire.dead = True
            delay = 0.0 if end is knows else self._random.random() * self._parameters.notice
            asyncio.get_running_loop().call_later(delay, end.lost, reason)
        if knows:
            knows.lost(reason)
