import asyncio
import threading

import pytest

from vmferry.errors import ConnectionLost
from vmferry_transports.tcp.outbox import Outbox


class NarrowLink:
    """Takes 10 bytes without waiting, then nothing until it is opened."""

    def __init__(self):
        self.sent, self.room, self.opened = b"", 10, threading.Event()

    def push(self, parts):
        count = len(parts[0]) if self.opened.is_set() else min(self.room, len(parts[0]))
        self.sent += parts[0][:count]
        self.room -= count
        rest = parts.popleft()[count:]
        if rest:
            parts.appendleft(rest)
        return not count

    def drained(self, parts):
        return not parts

    def wait_writable(self):
        self.opened.wait(5)

    def release(self):
        pass


class SlowOutbox(Outbox):
    """Its thread takes no job before the link is opened."""

    def _run(self):
        self._link.opened.wait(5)
        super()._run()


@pytest.fixture
async def outbox():
    link = NarrowLink()
    made = SlowOutbox(link, "send", lambda error: None, lambda: None)
    yield made
    link.opened.set()
    made.fail(ConnectionLost("over"))
    made.join()


async def cancelled(outbox, *starts):
    """Start one call after the other, and cancel all."""
    tasks = [asyncio.ensure_future(outbox.send(start, memoryview(b""))) for start in starts]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_a_frame_of_which_a_part_was_sent_is_not_taken_back(outbox):
    await cancelled(outbox, b"a" * 25, b"b" * 25)
    outbox._link.opened.set()
    await outbox.send(b"c" * 5, memoryview(b""))
    assert outbox._link.sent == b"a" * 25 + b"c" * 5


async def test_an_end_comes_after_a_frame_of_which_a_part_was_sent(outbox):
    sending = [asyncio.ensure_future(outbox.send(b"a" * 25, memoryview(b""))) for _ in range(2)]
    await asyncio.sleep(0)
    outbox.finish(ConnectionLost("closed by the peer"), drop=True)
    outbox._link.opened.set()
    await sending[0]
    with pytest.raises(ConnectionLost, match="closed by the peer"):
        await sending[1]
    outbox.join()
    assert outbox._link.sent == b"a" * 25 + b"\x56\x46\0\2" + bytes(8)
