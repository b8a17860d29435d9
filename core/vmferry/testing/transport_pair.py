"""Two connected ends for the checks of a transport, and waiting that ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import pytest

from vmferry.api.transport import Address, Connection, Frame, Lane, Limits, Listener, Transport
from vmferry.errors import ConnectionLost, VmferryError
from vmferry.testing.checks import check, pattern, quote

__all__ = [
    "LIMITS",
    "LOSES_NOTHING",
    "ORDER",
    "Pair",
    "bulk",
    "fill",
    "open_pair",
    "start",
    "together",
]

LIMITS = Limits(head=4096, payload=4 << 20, lanes=8)
"""What the checks run with."""

LANES = 3

_TURNS = 20

ORDER = "Frames of one lane arrive whole, once and in the order they were sent"
LOSES_NOTHING = (
    "A lane never drops a frame: it delivers it or the connection is lost, and both ends learn so."
)

ResultT = TypeVar("ResultT")


class Pair:
    """Both ends of a connection.

    Attributes:
        near: the end that connected.
        far: the end that was accepted.
        listener: which accepted it.
        patience: seconds after which a call counts as stuck.

    """

    def __init__(
        self, near: Connection, far: Connection, listener: Listener, patience: float
    ) -> None:
        self.near, self.far, self.listener, self.patience = near, far, listener, patience

    async def soon(self, what: Awaitable[ResultT], sentence: str, name: str) -> ResultT:
        """Wait for ``what``; fail with ``sentence`` when it takes longer than ``patience``."""
        try:
            async with asyncio.timeout(self.patience):
                return await what
        except TimeoutError:
            pytest.fail(f"{name} was still waiting after {self.patience:g} s\n{quote(sentence)}")

    async def works(self, what: Awaitable[ResultT], sentence: str, name: str) -> ResultT:
        """Wait for ``what``; fail with ``sentence`` also when it raises an error of vmferry's."""
        try:
            return await self.soon(what, sentence, name)
        except VmferryError as error:
            pytest.fail(f"{name} raised {error!r}\n{quote(sentence)}")

    async def send(
        self, lane: Lane, head: bytes, payload: bytes | memoryview = b"", sentence: str = ORDER
    ) -> None:
        """Send a frame; fail with ``sentence`` when that does not work."""
        await self.works(lane.send(head, payload), sentence, f"send() of frame {head[:20]!r}")

    async def expect(self, lane: Lane, head: bytes, payload: bytes, sentence: str = ORDER) -> None:
        """Fail unless the next frame of ``lane`` is this one."""
        frame = await self.works(lane.receive(), sentence, f"receive() of frame {head[:20]!r}")
        self.compare(frame, head, payload, sentence)

    def compare(self, frame: Frame | None, head: bytes, payload: bytes, sentence: str) -> None:
        """Fail unless ``frame`` has this content."""
        if frame is None:
            pytest.fail(f"None came instead of frame {head[:20]!r}\n{quote(sentence)}")
        check(
            bytes(frame.head) == head,
            sentence,
            f"head {bytes(frame.head)[:20]!r} came instead of {head[:20]!r}",
        )
        same = bytes(frame.payload) == payload
        size = memoryview(frame.payload).nbytes
        found = f"{size} bytes came, not {len(payload)}" if size != len(payload) else "other bytes"
        check(same, sentence, f"payload of frame {head[:20]!r}: {found}")

    async def expect_end(self, lane: Lane, sentence: str) -> None:
        """Fail unless ``lane`` ends in good order."""
        frame = await self.works(lane.receive(), sentence, "receive() at the end of a lane")
        check(frame is None, sentence, f"{frame!r} came instead of None")

    async def expect_lost(self, call: Awaitable[Any], sentence: str, name: str) -> None:
        """Fail unless ``call`` raises ``ConnectionLost``."""
        try:
            result = await self.soon(call, sentence, name)
        except ConnectionLost:
            return
        pytest.fail(f"{name} gave {result!r} instead of raising ConnectionLost\n{quote(sentence)}")


@contextlib.asynccontextmanager
async def open_pair(
    transport: Transport[Any], address: Address, patience: float, limits: Limits = LIMITS
) -> AsyncIterator[Pair]:
    """Listen, connect, accept; abort and close all at the end."""
    listener = await transport.listen(address, limits=limits)
    ends: list[Connection] = []
    try:
        accepting = start(listener.accept())
        near = await transport.connect(listener.address, lanes=LANES, limits=limits)
        ends.append(near)
        async with asyncio.timeout(patience):
            far = await accepting
        ends.append(far)
        yield Pair(near, far, listener, patience)
    finally:
        for end in ends:
            end.abort()
        for close in (*(end.close for end in ends), listener.close):
            with contextlib.suppress(TimeoutError):  # checks of their own look at that
                async with asyncio.timeout(patience):
                    await close()


def start(work: Awaitable[ResultT]) -> asyncio.Future[ResultT]:
    """Run ``work`` as a task that may end in an error nobody looks at, as after a failed check."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_look_at)
    return task


def _look_at(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def together(*work: Awaitable[None]) -> None:
    """Wait for all; the first failure ends the others and is raised as it is."""
    tasks = [start(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def fill(lane: Lane, pause: float, stop: int, size: int = 1 << 20) -> tuple[int, Any]:
    """Send frames until one waits for ``pause`` seconds, or ``stop`` were sent.

    Returns:
        How many were taken, and the task of the one that waits (``None`` if none does). Frame
        ``n`` has the head ``b"n"`` and ``pattern(size, n)`` cut to 64 KiB and repeated.

    """
    for number in range(stop):
        task = start(lane.send(b"%d" % number, bulk(number, size)))
        await _held_back(task, pause)
        if not task.done():
            return number, task
        task.result()
    return stop, None


async def _held_back(task: asyncio.Future[None], pause: float) -> None:
    """Wait for ``pause`` seconds in many turns: one long turn may be a machine that was busy."""
    for _ in range(_TURNS):
        await asyncio.wait([task], timeout=pause / _TURNS)
        if task.done():
            return


def bulk(number: int, size: int = 1 << 20) -> bytes:
    """``size`` bytes that tell frame ``number`` from all others."""
    return (pattern(65521, number) * (size // 65521 + 1))[:size]
