"""A transport against a model: what each lane still has to deliver."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import pytest

from vmferry.api.transport import Address, Lane, Transport
from vmferry.testing.machines import Await, run_machine
from vmferry.testing.transport_pair import LANES, LOSES_NOTHING, Pair, bulk, open_pair, start

__all__ = ["TransportModel"]

_CLOSE = "The peer's ``receive`` gives the frames still on their way and then ``None``."
_NOT_LOST = "A cancelled call loses no frame."


class TransportModel:
    """The test that hypothesis drives.

    Attributes:
        examples: sequences that are tried, each on a connection of its own.
        steps: calls of each.
        shrink: look for the shortest sequence that fails, which may take minutes.

    """

    patience: float
    examples: ClassVar[int] = 6
    steps: ClassVar[int] = 50
    shrink: ClassVar[bool] = False

    async def test_behaves_like_queues(
        self, transport: Transport[Any], listen_address: Address
    ) -> None:
        """Frames of all sizes on all lanes, both ways; receives that are cancelled; a close."""
        pytest.importorskip("hypothesis", reason="hypothesis is not installed")
        await run_machine(
            lambda run: _machine(PairBesideModel(transport, listen_address, self.patience), run),
            examples=self.examples,
            steps=self.steps,
            shrink=self.shrink,
        )


class PairBesideModel:
    """Both ends of a connection, and the frames that each lane has taken and not delivered."""

    def __init__(self, transport: Transport[Any], address: Address, patience: float) -> None:
        self._transport, self._address, self._patience = transport, address, patience
        self._number = 0

    async def begin(self) -> None:
        """Connect."""
        self._stack = AsyncExitStack()
        opened = open_pair(self._transport, self._address, self._patience)
        self._pair: Pair = await self._stack.enter_async_context(opened)
        self._due: dict[tuple[int, int], deque[tuple[bytes, bytes]]] = {
            (end, lane): deque() for end in range(2) for lane in range(LANES)
        }
        self._sending: dict[tuple[int, int], asyncio.Future[None]] = {}

    def _lane(self, end: int, lane: int) -> Lane:
        return (self._pair.near, self._pair.far)[end].lanes[lane]

    async def send(self, end: int, lane: int, size: int) -> None:
        """Send from a buffer that is used for something else afterwards; one call at a time."""
        before = self._sending.get((end, lane))
        if before is not None:
            if not before.done():
                return
            await self._pair.works(before, LOSES_NOTHING, "send()")
        self._number += 1
        frame = b"%d" % self._number, bulk(self._number, size)
        self._due[end, lane].append(frame)
        self._sending[end, lane] = start(self._send(end, lane, *frame))
        await asyncio.sleep(0)

    async def _send(self, end: int, lane: int, head: bytes, payload: bytes) -> None:
        buffer = bytearray(payload)
        await self._lane(end, lane).send(head, memoryview(buffer))
        buffer[:] = bytes(len(buffer))

    async def receive(self, end: int, lane: int) -> None:
        """The next frame that is due."""
        if self._due[end, lane]:
            head, payload = self._due[end, lane].popleft()
            await self._pair.expect(self._lane(1 - end, lane), head, payload, LOSES_NOTHING)

    async def cancelled_receive(self, end: int, lane: int, turns: int) -> None:
        """It takes the frame that is due, or none."""
        receiving = start(self._lane(1 - end, lane).receive())
        for _ in range(turns):
            await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait([receiving])
        if not receiving.cancelled():
            head, payload = self._due[end, lane].popleft() if self._due[end, lane] else (b"", b"")
            self._pair.compare(receiving.result(), head, payload, _NOT_LOST)

    async def finish(self, end: int) -> None:
        """All that is due comes; one end closes, and the other sees the end of each lane."""
        try:
            for place, due in self._due.items():
                while due:
                    await self.receive(*place)
            for sending in self._sending.values():
                await self._pair.works(sending, LOSES_NOTHING, "send()")
            closing = start((self._pair.near, self._pair.far)[end].close())
            for lane in range(LANES):
                await self._pair.expect_end(self._lane(1 - end, lane), _CLOSE)
            await self._pair.works(closing, _CLOSE, "close()")
        finally:
            await self._stack.aclose()


def _machine(both: PairBesideModel, run: Await[Any]) -> type:
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, rule

    ends, lanes = st.integers(0, 1), st.integers(0, LANES - 1)
    sizes = st.sampled_from([0, 1, 1000, 65_535, 65_536, 300_001])

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.closing = 0
            run(both.begin())

        @rule(end=ends, lane=lanes, size=sizes)
        def send(self, end: int, lane: int, size: int) -> None:
            run(both.send(end, lane, size))

        @rule(end=ends, lane=lanes)
        def receive(self, end: int, lane: int) -> None:
            run(both.receive(end, lane))

        @rule(end=ends, lane=lanes, turns=st.integers(0, 3))
        def cancelled_receive(self, end: int, lane: int, turns: int) -> None:
            run(both.cancelled_receive(end, lane, turns))

        @rule()
        def let_the_other_end_close(self) -> None:
            self.closing = 1 - self.closing

        def teardown(self) -> None:
            run(both.finish(self.closing))

    return Machine
