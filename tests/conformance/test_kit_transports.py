"""Transports that are broken on purpose are failed by the check that is there for it."""

import asyncio

import pytest

from vmferry.api.transport import Address, Connection, Lane, Listener
from vmferry.testing.transport import TransportConformance
from vmferry.testing.transport_pair import open_pair, start
from vmferry_transports.memory import MemoryTransport


class WrappedLane(Lane):
    def __init__(self, inner, connection):
        self.inner, self.connection = inner, connection

    async def send(self, head, payload=b""):
        await self.inner.send(head, payload)

    async def receive(self):
        return await self.inner.receive()


class WrappedConnection(Connection):
    lane = WrappedLane

    def __init__(self, inner):
        self.inner = inner
        self.wrapped = [self.lane(lane, self) for lane in inner.lanes]

    @property
    def lanes(self):
        return self.wrapped

    @property
    def peer(self):
        return self.inner.peer

    async def close(self):
        await self.inner.close()

    def abort(self):
        self.inner.abort()


class WrappedListener(Listener):
    def __init__(self, inner, connection):
        self.inner, self.connection, self.accepted = inner, connection, []

    @property
    def address(self):
        return self.inner.address

    async def accept(self):
        self.accepted.append(self.connection(await self.inner.accept()))
        return self.accepted[-1]

    async def close(self):
        await self.inner.close()


class Wrapped(MemoryTransport):
    """Over the memory transport, with parts of it replaced."""

    def __init__(self, *, lane=WrappedLane, connection=WrappedConnection, listener=WrappedListener):
        super().__init__()
        self.connection = type("Chosen", (connection,), {"lane": lane})
        self.listener = listener

    async def connect(self, address, *, lanes, limits):
        return self.connection(await super().connect(address, lanes=lanes, limits=limits))

    async def listen(self, address, *, limits):
        return self.listener(await super().listen(address, limits=limits), self.connection)


class Counting(WrappedLane):
    count = 0

    async def send(self, head, payload=b""):
        self.count += 1
        await self.send_number(self.count, head, payload)


class Reordered(Counting):
    async def send_number(self, number, head, payload):
        if number % 5 == 3:
            self.held = (head, bytes(payload))
            return
        await self.inner.send(head, payload)
        if number % 5 == 4:
            await self.inner.send(*self.held)


class Dropped(Counting):
    async def send_number(self, number, head, payload):
        if number % 9:
            await self.inner.send(head, payload)


class DroppedSoon(Counting):
    async def send_number(self, number, head, payload):
        if number % 3:
            await self.inner.send(head, payload)


class Duplicated(Counting):
    async def send_number(self, number, head, payload):
        for _ in range(2 if number == 7 else 1):
            await self.inner.send(head, payload)


class Truncated(WrappedLane):
    async def send(self, head, payload=b""):
        await self.inner.send(head, payload[:65_536] if len(payload) == 1_000_003 else payload)


class HeadLost(WrappedLane):
    async def send(self, head, payload=b""):
        await self.inner.send(head if payload else b"", payload)


class Pumped(WrappedLane):
    """Takes every frame at once and passes it on later."""

    keeps = staticmethod(bytes)

    def __init__(self, inner, connection):
        super().__init__(inner, connection)
        self.queue = asyncio.Queue()
        self.pump = None

    async def send(self, head, payload=b""):
        if self.pump is None:
            self.pump = start(self.run())
        self.queue.put_nowait((head, self.keeps(payload)))

    async def run(self):
        while True:
            await self.inner.send(*await self.queue.get())


class BufferKept(Pumped):
    keeps = staticmethod(memoryview)


class BufferReused(WrappedLane):
    async def receive(self):
        frame = await self.inner.receive()
        last, self.last = getattr(self, "last", None), frame.payload
        if last is not None:
            last[:] = bytes(len(last))
        return frame


class Unlimited(WrappedLane):
    async def send(self, head, payload=b""):
        await self.inner.send(head[:4096], payload[: 4 << 20])


class Stuck(WrappedLane):
    """All lanes take turns."""

    async def send(self, head, payload=b""):
        turn = self.connection.__dict__.setdefault("turn", asyncio.Lock())
        async with turn:
            await self.inner.send(head, payload)


class Mixed(WrappedLane):
    async def send(self, head, payload=b""):
        self.payload = payload
        await asyncio.sleep(0)
        await self.inner.send(head, self.payload)


class ForgetfulReceive(WrappedLane):
    async def receive(self):
        frame = await self.inner.receive()
        await asyncio.sleep(0)
        return frame


class HalfSend(WrappedLane):
    async def send(self, head, payload=b""):
        try:
            await self.inner.send(head, payload)
        except asyncio.CancelledError:
            self.rest = start(self.inner.send(head, bytes(payload[: 1 << 19])))
            raise


class KeepsCancelled(WrappedLane):
    """A cancelled call goes on sending from the caller's buffer."""

    async def send(self, head, payload=b""):
        self.task = start(self.inner.send(head, payload))
        await asyncio.shield(self.task)


class LateError(WrappedLane):
    """Waits for ever instead of raising."""

    async def receive(self):
        try:
            return await self.inner.receive()
        except Exception:
            await asyncio.Event().wait()


class AbortIsClose(WrappedConnection):
    def abort(self):
        for lane in self.inner.lanes:
            lane.out.end(None)
            lane.into.end(None)


class AbortIsLocal(WrappedConnection):
    def abort(self):
        for lane in self.inner.lanes:
            lane.into.end(None, drop=True)


class TailLost(WrappedConnection):
    async def close(self):
        for lane in self.inner.lanes:
            if lane.out._frames:
                lane.out._frames.pop()
        await self.inner.close()


class CloseUnseen(WrappedConnection):
    async def close(self):
        pass


class CloseIsAbort(WrappedConnection):
    async def close(self):
        self.inner.abort()


class CloseOnce(WrappedConnection):
    async def close(self):
        if self.__dict__.setdefault("closed", False):
            await asyncio.Event().wait()
        self.closed = True
        await self.inner.close()


class LanesMixed(WrappedConnection):
    def __init__(self, inner):
        super().__init__(inner)
        if not inner.peer.address.removeprefix("memory://"):
            self.wrapped[1:] = reversed(self.wrapped[1:])


class ListenerTakesAll(WrappedListener):
    async def close(self):
        for connection in self.accepted:
            connection.abort()
        await super().close()


class ForgetfulAccept(WrappedListener):
    async def accept(self):
        return self.connection(await asyncio.shield(start(self.inner.accept())))


class EndlessAccept(WrappedListener):
    async def accept(self):
        try:
            return await super().accept()
        except Exception:
            await asyncio.Event().wait()


BROKEN = [
    (Wrapped(lane=Reordered), "frames_arrive_whole_once_and_in_order"),
    (Wrapped(lane=Dropped), "frames_arrive_whole_once_and_in_order"),
    (Wrapped(lane=Duplicated), "frames_arrive_whole_once_and_in_order"),
    (Wrapped(lane=Truncated), "frames_of_all_sizes_arrive_whole"),
    (Wrapped(lane=HeadLost), "frames_of_all_sizes_arrive_whole"),
    (Wrapped(lane=BufferKept), "payload_is_the_callers_again"),
    (Wrapped(lane=BufferReused), "received_frames_are_the_receivers_to_keep"),
    (Wrapped(lane=Unlimited), "larger_than_the_limits_is_refused"),
    (Wrapped(lane=Pumped), "a_slow_receiver_holds_back_the_sender"),
    (Wrapped(lane=Stuck), "lanes_do_not_wait_for_each_other"),
    (Wrapped(lane=Mixed), "concurrent_sends_are_never_mixed"),
    (Wrapped(lane=ForgetfulReceive), "a_cancelled_receive_loses_no_frame"),
    (Wrapped(lane=HalfSend), "a_cancelled_send_is_all_or_nothing"),
    (Wrapped(lane=KeepsCancelled), "a_cancelled_send_is_all_or_nothing"),
    (Wrapped(lane=LateError), "abort_reaches_calls_that_wait_at_both_ends"),
    (Wrapped(connection=AbortIsClose), "abort_never_looks_like_a_close"),
    (Wrapped(connection=AbortIsLocal), "abort_is_learnt_by_a_sender"),
    (Wrapped(connection=TailLost), "close_delivers_all_and_then_none"),
    (Wrapped(connection=CloseUnseen), "close_is_seen_by_a_peer_that_waits"),
    (Wrapped(connection=CloseIsAbort), "close_is_seen_by_a_peer_that_waits"),
    (Wrapped(connection=CloseOnce), "close_from_both_ends_and_twice"),
    (Wrapped(connection=LanesMixed), "lanes_are_the_same_at_both_ends"),
    (Wrapped(listener=ListenerTakesAll), "a_closed_listener_leaves_connections_alone"),
    (Wrapped(listener=EndlessAccept), "a_closed_listener_leaves_connections_alone"),
    (Wrapped(listener=ForgetfulAccept), "a_cancelled_accept_loses_no_connection"),
    (Wrapped(lane=DroppedSoon), "behaves_like_queues"),
    (Wrapped(lane=BufferKept), "behaves_like_queues"),
    (Wrapped(lane=ForgetfulReceive), "behaves_like_queues"),
    (Wrapped(connection=CloseUnseen), "behaves_like_queues"),
]
EXTRA = {
    "frames_of_all_sizes_arrive_whole": [(1, 0), (100, 1_000_003)],
    "larger_than_the_limits_is_refused": [("payload",)],
}


class Impatient(TransportConformance):
    patience = 0.4
    pause = 0.05
    most_buffered = 8 << 20

    async def run(self, transport, check):
        """Run one check with all its parameters, without pytest's fixtures."""
        if check == "behaves_like_queues":
            await self.test_behaves_like_queues(transport, Address.parse("memory://"))
            return
        wants_transport = ("lanes_do_not_wait", "a_cancelled_accept")
        for extra in EXTRA.get(check, [()]):
            async with open_pair(transport, Address.parse("memory://"), self.patience) as pair:
                given = (pair, transport) if check.startswith(wants_transport) else (pair,)
                await getattr(self, f"test_{check}")(*given, *extra)


def name(value):
    if isinstance(value, str):
        return ""
    parts = (value.connection.lane, value.connection.__bases__[0], value.listener)
    return next(part.__name__ for part in parts if not part.__name__.startswith("Wrapped"))


@pytest.fixture
async def no_tasks_left():
    yield
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.usefixtures("no_tasks_left")
@pytest.mark.parametrize(("transport", "check"), BROKEN, ids=name)
async def test_a_broken_transport_is_failed(transport, check):
    with pytest.raises(pytest.fail.Exception, match=r"vmferry\.api\.\w+ says: "):
        await Impatient().run(transport, check)


@pytest.mark.parametrize("check", sorted({check for _, check in BROKEN}))
async def test_the_wrapping_alone_is_passed(check):
    kit = Impatient()
    kit.patience = TransportConformance.patience
    await kit.run(Wrapped(), check)
