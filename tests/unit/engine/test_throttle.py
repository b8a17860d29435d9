from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from vmferry.engine.throttle import BURST_SECONDS, Throttle

MB = 1_000_000


class _Skip(selectors.SelectSelector):
    """Passes the time that would be waited for instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.skip = _Skip()
        super().__init__(self.skip)

    def time(self) -> float:
        return self.skip.now


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = _VirtualLoop()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 1e6))
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


def test_without_a_limit_nothing_waits() -> None:
    async def main() -> None:
        throttle = Throttle()
        for _ in range(100):
            await throttle.take(1 << 40)
        assert now() == 0
        assert throttle.sent == 100 << 40

    run(main)


def test_the_rate_holds_whatever_the_size_of_the_pieces() -> None:
    async def main() -> None:
        rng = random.Random(1)
        throttle = Throttle(10 * MB)
        total = 0
        while total < 100 * MB:
            size = rng.choice([1, 500, 64 << 10, 4 << 20])
            await throttle.take(size)
            total += size
            assert throttle.sent <= 10 * MB * (now() + BURST_SECONDS) + (4 << 20)
        assert now() == pytest.approx(10, rel=0.1)

    run(main)


def test_many_lanes_share_one_limit_in_turn() -> None:
    async def main() -> None:
        throttle = Throttle(MB)
        turns: list[int] = []

        async def lane(number: int) -> None:
            for _ in range(10):
                await throttle.take(100_000)
                turns.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(lane(number))
        assert now() == pytest.approx(5, rel=0.05)
        assert turns[1:46] == [*range(5)] * 9  # the very first did not have to wait

    run(main)


def test_a_piece_far_larger_than_the_burst_goes_and_is_paid_for() -> None:
    async def main() -> None:
        throttle = Throttle(MB)
        await throttle.take(10 * MB)
        assert now() == 0
        await throttle.take(1)
        assert now() == pytest.approx(10, rel=0.02)

    run(main)


def test_urgent_goes_ahead_and_is_accounted() -> None:
    async def main() -> None:
        throttle = Throttle(MB)
        await throttle.take(MB // 2)
        order: list[tuple[str, float]] = []

        async def take(name: str, size: int, urgent: bool) -> None:
            await throttle.take(size, urgent=urgent)
            order.append((name, now()))

        async with asyncio.TaskGroup() as group:
            group.create_task(take("bulk", MB // 10, False))
            group.create_task(take("urgent", MB // 10, True))
        assert [name for name, _ in order] == ["urgent", "bulk"]
        assert order[0][1] == 0
        assert order[1][1] == pytest.approx(0.6, rel=0.02)
        assert throttle.sent == 7 * MB // 10

    run(main)


def test_urgent_alone_keeps_to_the_rate_too() -> None:
    async def main() -> None:
        throttle = Throttle(MB)
        for _ in range(200):
            await throttle.take(MB // 10, urgent=True)
        assert now() == pytest.approx(19, abs=0.2)  # 20 s of bytes, one of them on credit

    run(main)


@pytest.mark.parametrize(("rate", "expected"), [(0, 1.0), (100 * MB, 1.09)])
def test_a_new_rate_wakes_those_who_wait(rate: int, expected: float) -> None:
    async def main() -> None:
        throttle = Throttle(MB)
        await throttle.take(10 * MB)

        async def change() -> None:
            await asyncio.sleep(1)
            throttle.set(rate)

        async with asyncio.TaskGroup() as group:
            group.create_task(change())
            group.create_task(throttle.take(MB // 100))
        assert now() == pytest.approx(expected, abs=0.01)
        assert throttle.rate == rate

    run(main)


def test_a_lower_rate_holds_back_those_who_wait() -> None:
    async def main() -> None:
        throttle = Throttle(10 * MB)
        await throttle.take(10 * MB)

        async def change() -> None:
            await asyncio.sleep(0.5)
            throttle.set(MB)

        async with asyncio.TaskGroup() as group:
            group.create_task(change())
            group.create_task(throttle.take(1))
        assert now() == pytest.approx(5, rel=0.05)

    run(main)


def test_a_limit_set_after_none_holds_at_once() -> None:
    async def main() -> None:
        throttle = Throttle()
        await throttle.take(1 << 40)
        throttle.set(MB)
        await throttle.take(MB // 20)
        await throttle.take(MB // 20)
        assert now() == pytest.approx(0.1, abs=0.01)

    run(main)


def test_a_cancelled_waiter_takes_nothing_and_lets_the_next_go() -> None:
    async def main() -> None:
        throttle = Throttle(MB)
        await throttle.take(MB)
        large = asyncio.create_task(throttle.take(MB))
        small = asyncio.create_task(throttle.take(1))
        await asyncio.sleep(0)
        large.cancel()
        await small
        assert throttle.sent == MB + 1
        assert now() == pytest.approx(1, abs=0.06)

    run(main)


def test_cancelled_at_the_moment_of_being_let_go_is_given_back() -> None:
    async def main() -> None:
        throttle = Throttle(MB)
        await throttle.take(MB)
        task = asyncio.create_task(throttle.take(MB))
        await asyncio.sleep(0)
        throttle.set(0)  # lets it go; it has not run yet
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert throttle.sent == MB

    run(main)


def test_rate_now_follows_the_rate_and_fades() -> None:
    async def main() -> None:
        throttle = Throttle()
        assert throttle.rate_now() == 0
        for _ in range(100):
            await throttle.take(100_000)
            await asyncio.sleep(0.01)
        assert throttle.rate_now() == pytest.approx(10 * MB, rel=0.05)
        await asyncio.sleep(10)
        assert throttle.rate_now() < MB / 100

    run(main)


def test_a_rate_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="below 0"):
        Throttle(-1)
