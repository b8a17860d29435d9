"""What is between QEMU and the link."""

from __future__ import annotations

import asyncio
import contextlib

from vmferry.testing.streams import stream_pair
from vmferry_hypervisors.qemu.relay import NoStream, Relay, socket_pair

PIECE = bytes(32 << 10)


class Stuck(NoStream):
    """A link that carries nothing more."""

    def __init__(self):
        self.asked = asyncio.Event()

    async def write(self, data):
        self.asked.set()
        await asyncio.Event().wait()

    async def read(self, limit=0):
        return await asyncio.Event().wait()


def fill(end):
    """How much more the socket takes."""
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            taken += end.send(PIECE)
    return taken


async def test_qemu_is_held_back_when_the_link_stands_still():
    """All that is under way makes the guest stand still the longer, on a slow link."""
    ours, theirs = socket_pair()
    stream = Stuck()
    relay = Relay(ours, stream)
    with theirs:
        theirs.setblocking(False)
        relay.start()
        taken = fill(theirs)
        await stream.asked.wait()
        taken += fill(theirs)
        await relay.close()
    assert 0 < taken <= 1 << 20


async def test_one_that_is_closed_before_it_began_leaves_nothing_open():
    ours, theirs = socket_pair()
    relay = Relay(ours, stream_pair()[0])
    relay.start()
    await relay.close()
    assert ours.fileno() == -1
    theirs.close()
