"""A connection on which nothing moves is given up; one that is slow or limited is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from vmferry.api import Address, Phase
from vmferry.engine.meter import Meter
from vmferry.engine.stall import unstalled
from vmferry.engine.throttle import Throttle
from vmferry.errors import LinkTimeout
from vmferry.plugins import Hooks
from vmferry.simulation.loop import run
from vmferry.wire.codec import encode
from vmferry.wire.link import LIMITS, Link
from vmferry.wire.messages import Barrier, Reached
from vmferry_transports.memory import MemoryTransport

BARRIER = encode(Barrier(serial=1))


class Bench:
    """Two links whose heartbeats go on, on a loop of virtual time."""

    def __init__(self, here: Link, there: Link) -> None:
        self.here, self.there = here, there
        self.meter, self.throttle = Meter("a1b2c3d4", "source", Hooks()), Throttle(0)
        self.meter.enter(Phase.PUSH_DISK)

    async def watched(self, work: Any, timeout: float = 60, **more: Any) -> float:
        """Seconds until ``work`` was done."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await unstalled(
            work, self.here, timeout=timeout, meter=self.meter, throttle=self.throttle, **more
        )
        return loop.time() - began


async def bench(test: Callable[[Bench], Awaitable[None]]) -> None:
    transport, address = MemoryTransport(), Address.parse("memory://stall")
    listener = await transport.listen(address, limits=LIMITS)
    ends = await asyncio.gather(
        transport.connect(address, lanes=3, limits=LIMITS), listener.accept()
    )
    async with Link(ends[0]) as here, Link(ends[1]) as there:
        await here.guard(test(Bench(here, there)))
    await listener.close()


async def send_for_ever(link: Link, pause: float = 0.0) -> None:
    while True:
        await link.bulk_lanes[0].send(BARRIER, bytes(1000))
        await asyncio.sleep(pause)


def test_a_peer_that_takes_nothing_but_answers_is_given_up() -> None:
    async def test(bench: Bench) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(LinkTimeout) as caught:
            await bench.watched(send_for_ever(bench.here))
        text = str(caught.value)
        assert text.startswith("push-disk: nothing moved to or from memory://")
        assert "--stall-timeout" in text
        assert 60 <= asyncio.get_running_loop().time() - began < 75

    run(bench(test))


def test_nothing_is_given_up_when_it_is_off() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await bench.watched(send_for_ever(bench.here), timeout=0)

    run(bench(test))


@pytest.mark.parametrize("way", ["sent", "received", "control", "stream", "memory", "phase"])
def test_whatever_moves_now_and_then_keeps_it_alive(way: str) -> None:
    async def test(bench: Bench) -> None:
        memory = 0

        async def move() -> None:
            nonlocal memory
            for number in range(7):
                await asyncio.sleep(50)
                if way == "sent":
                    await bench.here.bulk_lanes[0].send(BARRIER)
                elif way == "received":
                    await bench.there.bulk_lanes[0].send(BARRIER)
                    await bench.here.receive_on(bench.here.bulk_lanes[0])
                elif way == "control":
                    await bench.there.send(Reached(serial=number))
                elif way == "stream":
                    await bench.here.stream_lanes[0].send(BARRIER)
                elif way == "memory":
                    memory += 1
                else:
                    bench.meter.enter(list(Phase)[number % 2])

        moving = asyncio.create_task(move())
        waiting = asyncio.Event()
        with pytest.raises(LinkTimeout):
            await bench.watched(waiting.wait(), further=lambda: memory)
        assert asyncio.get_running_loop().time() >= 410
        await moving

    run(bench(test))


def test_a_limit_is_no_stall() -> None:
    async def test(bench: Bench) -> None:
        bench.throttle.set(1)
        await bench.throttle.take(600)
        assert await bench.watched(bench.throttle.take(1)) > 500

    run(bench(test))


def test_a_flush_may_take_longer_but_not_for_ever() -> None:
    async def test(bench: Bench) -> None:
        assert await bench.watched(asyncio.sleep(500), flushing=lambda: True) == 500
        with pytest.raises(LinkTimeout, match="nothing moved"):
            await bench.watched(asyncio.sleep(1000), flushing=lambda: True)

    run(bench(test))


def test_the_work_is_ended() -> None:
    async def test(bench: Bench) -> None:
        ended = False

        async def work() -> None:
            nonlocal ended
            try:
                await asyncio.Event().wait()
            finally:
                ended = True

        with pytest.raises(LinkTimeout):
            await bench.watched(work())
        assert ended

    run(bench(test))
