"""Connections between tasks of one process: the whole contract of a transport."""

from asyncio import Event

from vmferry import api, errors

LISTENERS, (OPEN, CLOSED, LOST) = {}, range(3)


class Fields:
    """Keeps what it is given, also what the contracts have as properties."""

    address, lanes, peer = None, (), api.PeerInfo(address="queues://")

    def __init__(self, **fields):
        vars(self).update(fields)


class Pipe(Fields):
    """Items that go one way, and an end that only gets worse."""

    def __init__(self, **fields):
        super().__init__(items=[], end=OPEN, changed=Event(), **fields)

    def change(self, end=OPEN):
        self.end = max(self.end, end)
        self.changed.set()  # whoever waits looks again, once we are done
        self.changed.clear()

    async def until(self, ready):
        while not ready(self):
            if self.end:
                raise errors.ConnectionLost("this end was closed, or the connection lost")
            await self.changed.wait()
        self.change()  # the caller acts before others look


class QueueLane(Fields, api.Lane):  # limits (the receiver's), out, into
    async def send(self, head, payload=b""):
        if len(head) > self.limits.head or len(payload) > self.limits.payload:
            raise ValueError("head or payload is larger than the limits")
        await self.out.until(lambda out: not out.end and len(out.items) < 8)
        kept = self.limits.allocate(len(payload))
        kept[:] = payload
        self.out.items.append(api.Frame(head, kept))

    async def receive(self):
        await self.into.until(lambda into: into.end == CLOSED or (into.items and not into.end))
        return self.into.items.pop(0) if self.into.items else None


class QueueConnection(Fields, api.Connection):
    async def close(self):
        self.abort(CLOSED)

    def abort(self, end=LOST):
        for lane in self.lanes:
            lane.out.change(end)
            lane.into.change(end)


class QueueListener(Pipe, api.Listener):  # address, limits; its items are connections
    async def accept(self):
        await self.until(lambda listener: listener.items)
        return self.items.pop(0)

    async def close(self):
        LISTENERS.pop(self.address.host, None)
        self.change(CLOSED)


class QueueTransport(api.Transport):
    api_version, name, summary = 1, "queues", "between tasks of one process"

    async def connect(self, address, *, lanes, limits):
        if (there := LISTENERS.get(address.host)) is None:
            raise errors.LinkError(f"nobody listens at {address}")
        near = [QueueLane(limits=there.limits, out=Pipe(), into=Pipe()) for _ in range(lanes)]
        far = [QueueLane(limits=limits, out=lane.into, into=lane.out) for lane in near]
        there.items.append(QueueConnection(lanes=far))
        there.change()
        return QueueConnection(lanes=near)

    async def listen(self, address, *, limits):
        if address.host in LISTENERS:
            raise errors.InputError(f"somebody listens at {address} already")
        return LISTENERS.setdefault(address.host, QueueListener(address=address, limits=limits))
