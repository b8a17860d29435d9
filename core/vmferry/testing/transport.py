"""What a transport must keep: subclass ``TransportConformance`` in a test module.

::

    class TestPigeon(TransportConformance):
        @pytest.fixture
        def transport(self):
            return PigeonTransport(PigeonOptions(...))

        @pytest.fixture
        def listen_address(self):
            return Address.parse("pigeon://loft")

The checks connect in one process with three lanes, heads of at most 4 KiB and payloads of at most
4 MiB.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from vmferry.api.plugin import Grade
from vmferry.api.transport import Address, Lane, Limits, Transport
from vmferry.errors import ConnectionLost
from vmferry.testing.checks import check, pattern, quote, refuses
from vmferry.testing.transport_faults import FaultChecks
from vmferry.testing.transport_life import LifeChecks
from vmferry.testing.transport_machine import TransportModel
from vmferry.testing.transport_pair import (
    LIMITS,
    LOSES_NOTHING,
    ORDER,
    Pair,
    bulk,
    fill,
    open_pair,
    start,
    together,
)

__all__ = ["TransportConformance"]

_SIZES = [
    (0, 0),
    (0, 1),
    (1, 0),
    (100, 65_535),
    (100, 1_000_003),
    (LIMITS.head, 0),
    (0, LIMITS.payload),
    (LIMITS.head, LIMITS.payload),
]


class FlowChecks:
    """Checks of frames under way."""

    patience: float
    pause: float
    most_buffered: int

    async def test_frames_arrive_whole_once_and_in_order(self, pair: Pair) -> None:
        """All lanes, both directions, all at the same time."""

        async def send(lane: Lane, lane_number: int) -> None:
            for number in range(40):
                head = b"%d/%d" % (lane_number, number)
                await pair.send(lane, head, pattern(number * 997, number))

        async def receive(lane: Lane, lane_number: int) -> None:
            for number in range(40):
                head = b"%d/%d" % (lane_number, number)
                await pair.expect(lane, head, pattern(number * 997, number))

        work = []
        for here, there in ((pair.near, pair.far), (pair.far, pair.near)):
            work += [send(lane, number) for number, lane in enumerate(here.lanes)]
            work += [receive(lane, number) for number, lane in enumerate(there.lanes)]
        await together(*work)

    @pytest.mark.parametrize(("head", "payload"), _SIZES)
    async def test_frames_of_all_sizes_arrive_whole(
        self, pair: Pair, head: int, payload: int
    ) -> None:
        """From nothing at all to both limits."""
        sending = start(pair.near.lanes[1].send(b"h" * head, bulk(1, payload)))
        await pair.expect(pair.far.lanes[1], b"h" * head, bulk(1, payload))
        await pair.works(sending, ORDER, "send() of a received frame")

    @pytest.mark.parametrize("part", ["head", "payload"])
    async def test_larger_than_the_limits_is_refused(self, pair: Pair, part: str) -> None:
        """And the lane goes on as if nothing had been sent."""
        lane = pair.near.lanes[1]
        head = bytes(LIMITS.head + (part == "head"))
        payload = bytes(LIMITS.payload + (part == "payload"))
        with refuses(ValueError, "ValueError: head or payload is larger than the limits."):
            await pair.works(lane.send(head, payload), ORDER, "send()")
        await pair.send(lane, b"next", b"frame")
        await pair.expect(pair.far.lanes[1], b"next", b"frame")

    async def test_payload_is_the_callers_again(self, pair: Pair) -> None:
        """The same buffer is filled again and again, while nobody receives yet."""
        lane, sentence = pair.near.lanes[1], "On return ``payload`` is the caller's again."
        buffer = bytearray(100_000)
        for number in range(5):
            buffer[:] = bulk(number, len(buffer))
            await pair.works(lane.send(b"%d" % number, memoryview(buffer)), ORDER, "send()")
        buffer[:] = bytes(len(buffer))
        for number in range(5):
            await pair.expect(pair.far.lanes[1], b"%d" % number, bulk(number, 100_000), sentence)

    async def test_received_frames_are_the_receivers_to_keep(self, pair: Pair) -> None:
        """Later frames do not change earlier ones."""
        kept = []
        for number in range(5):
            await pair.send(pair.near.lanes[1], b"%d" % number, bulk(number, 50_000))
            kept.append(await pair.works(pair.far.lanes[1].receive(), ORDER, "receive()"))
        for number, frame in enumerate(kept):
            sentence = "Both parts are the receiver's to keep."
            pair.compare(frame, b"%d" % number, bulk(number, 50_000), sentence)

    async def test_payloads_are_put_where_the_receiver_says(
        self, transport: Transport[Any], listen_address: Address
    ) -> None:
        """The receiver's ``allocate`` gives the buffer of each payload."""
        given: list[memoryview] = []

        def allocate(size: int) -> memoryview:
            given.append(memoryview(bytearray(size)))
            return given[-1]

        limits = Limits(head=LIMITS.head, payload=LIMITS.payload, allocate=allocate)
        async with open_pair(transport, listen_address, self.patience, limits) as pair:
            await pair.send(pair.near.lanes[1], b"", bulk(1))
            await pair.expect(pair.far.lanes[1], b"", bulk(1))
        found = [bytes(each) for each in given]
        check(found == [bulk(1)], "allocate: where payloads are put.", f"{len(found)} buffers")

    async def test_lanes_are_the_same_at_both_ends(self, pair: Pair) -> None:
        """Each lane carries its own number."""
        sentence = "The same number, in the same order, at both ends."
        counts = (len(pair.near.lanes), len(pair.far.lanes))
        check(counts == (3, 3), sentence, f"{counts} lanes where 3 were asked for")
        for number in (2, 0, 1):
            await pair.send(pair.near.lanes[number], b"near %d" % number)
            await pair.send(pair.far.lanes[number], b"far %d" % number)
        for number in range(3):
            await pair.expect(pair.far.lanes[number], b"near %d" % number, b"", sentence)
            await pair.expect(pair.near.lanes[number], b"far %d" % number, b"", sentence)

    async def test_a_slow_receiver_holds_back_the_sender(self, pair: Pair) -> None:
        """Nothing is received for a while; then all that was sent is there."""
        most = self.most_buffered >> 20
        sent, waiting = await fill(pair.near.lanes[1], self.pause, most + 1)
        check(
            waiting is not None,
            "at most a few frames or some MiB are buffered",
            f"{sent} MiB were taken while nobody received",
        )
        for number in range(sent + 1):
            await pair.expect(pair.far.lanes[1], b"%d" % number, bulk(number), LOSES_NOTHING)
        await pair.works(waiting, LOSES_NOTHING, "send() of a received frame")

    async def test_lanes_do_not_wait_for_each_other(
        self, pair: Pair, transport: Transport[Any]
    ) -> None:
        """The control lane works while a bulk lane is stuck."""
        if transport.capabilities.lanes is Grade.NONE:
            pytest.skip("capability lanes is NONE: lanes may wait for each other")
        _, waiting = await fill(pair.near.lanes[1], self.pause, self.most_buffered >> 20)
        sentence = "lanes do not wait for each other."
        for number in range(3):
            head = b"ping %d" % number
            await pair.works(pair.near.lanes[0].send(head), sentence, "send() on the control lane")
            await pair.expect(pair.far.lanes[0], head, b"", sentence)
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait([waiting])

    async def test_concurrent_sends_are_never_mixed(self, pair: Pair) -> None:
        """Twenty tasks send at once on one lane."""
        sentence = "concurrent calls are queued whole, never mixed."
        lane = pair.near.lanes[1]
        tasks = [start(lane.send(b"%d" % n, bulk(n, 300_000))) for n in range(20)]
        seen = []
        for _ in tasks:
            frame = await pair.works(pair.far.lanes[1].receive(), sentence, "receive()")
            number = int(bytes(frame.head)) if frame is not None else -1
            pair.compare(frame, b"%d" % number, bulk(number, 300_000), sentence)
            seen.append(number)
        check(sorted(seen) == list(range(20)), sentence, f"frames {seen} came")
        await pair.works(asyncio.gather(*tasks), sentence, "send() of a received frame")

    async def test_a_cancelled_receive_loses_no_frame(self, pair: Pair) -> None:
        """Calls are cancelled before, while and after a frame arrives."""
        sentence = "A cancelled call loses no frame."
        lane, got = pair.far.lanes[1], 0
        for number in range(60):
            receiving = start(lane.receive())
            await asyncio.sleep(0)
            await pair.send(pair.near.lanes[1], b"%d" % number, b"x" * 2000)
            for _ in range(number % 6):
                await asyncio.sleep(0 if number % 2 else self.pause / 500)
            receiving.cancel()
            await asyncio.wait([receiving])
            if not receiving.cancelled():
                pair.compare(receiving.result(), b"%d" % got, b"x" * 2000, sentence)
                got += 1
            while got + 3 < number:
                await pair.expect(lane, b"%d" % got, b"x" * 2000, sentence)
                got += 1
        for number in range(got, 60):
            await pair.expect(lane, b"%d" % number, b"x" * 2000, sentence)

    async def test_a_cancelled_send_is_all_or_nothing(self, pair: Pair) -> None:
        """A call that waits for a slow receiver is cancelled, and its buffer used again."""
        near, far = pair.near.lanes[1], pair.far.lanes[1]
        sent, waiting = await fill(near, self.pause, self.most_buffered >> 20)
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait([waiting])
        buffer = bytearray(bulk(sent + 1))
        second = start(near.send(b"%d" % (sent + 1), memoryview(buffer)))
        await asyncio.wait([second], timeout=self.pause)
        second.cancel()
        await asyncio.wait([second])
        buffer[:] = bytes(len(buffer))
        after = start(near.send(b"after"))
        await self._check_after_cancel(pair, far, sent)
        await asyncio.wait([after])

    async def _check_after_cancel(self, pair: Pair, lane: Any, sent: int) -> None:
        """Frames come in order; only the two cancelled ones may be missing."""
        sentence = (
            "A cancelled call either sent the frame whole, not at all, or has broken the lane."
        )
        expected = 0
        while True:
            try:
                frame = await pair.soon(
                    lane.receive(), sentence, "receive() after a cancelled send"
                )
            except ConnectionLost:
                return
            if frame is None:
                pytest.fail(f"the lane ended in good order\n{quote(sentence)}")
            if bytes(frame.head) == b"after":
                check(expected >= sent, sentence, f"frames {expected} to {sent - 1} are missing")
                return
            number = int(bytes(frame.head))
            check(number == expected or number == sent + 1, sentence, f"{number} is not {expected}")
            pair.compare(frame, b"%d" % number, bulk(number), sentence)
            expected = number + 1


class TransportConformance(FlowChecks, LifeChecks, FaultChecks, TransportModel):
    """All checks of a transport; give it the fixtures ``transport`` and ``listen_address``.

    Attributes:
        patience: seconds after which a call counts as stuck.
        pause: seconds without progress after which a sender counts as held back.
        most_buffered: payload bytes that a lane may take while nobody receives, buffers of both
            kernels included; a transport over a network may need more than the 64 MiB here.

    """

    pytestmark = pytest.mark.asyncio

    patience = 10.0
    pause = 0.25
    most_buffered = 64 << 20

    @pytest.fixture
    def transport(self) -> Transport[Any]:
        """Give the transport, made with its options."""
        raise NotImplementedError("give a fixture named transport")

    @pytest.fixture
    def listen_address(self) -> Address:
        """Give an address at which ``listen`` can be called."""
        raise NotImplementedError("give a fixture named listen_address")

    @pytest_asyncio.fixture
    async def pair(self, transport: Transport[Any], listen_address: Address) -> AsyncIterator[Pair]:
        """Both ends of a connection with three lanes."""
        async with open_pair(transport, listen_address, self.patience) as pair:
            yield pair
