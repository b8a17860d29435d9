from __future__ import annotations

import asyncio

import pytest

from vmferry.engine.outlast import uninterrupted
from vmferry.engine.rangelock import Hold, RangeLock


async def settled(task: asyncio.Task[Hold]) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


async def test_neighbours_are_held_at_once_and_overlaps_in_turn() -> None:
    lock = RangeLock()
    first = await lock.acquire(0, 10)
    await lock.acquire(10, 10)
    second = asyncio.create_task(lock.acquire(9, 1))
    third = asyncio.create_task(lock.acquire(5, 30))
    late = asyncio.create_task(lock.acquire(30, 1))  # free, but third was before it
    apart = asyncio.create_task(lock.acquire(40, 1))
    assert not await settled(second)
    assert apart.done()
    lock.release(first)
    assert await settled(second)
    assert not third.done()
    assert not late.done()


async def test_one_that_is_cancelled_while_waiting_blocks_nobody() -> None:
    lock = RangeLock()
    first = await lock.acquire(0, 10)
    wide = asyncio.create_task(lock.acquire(5, 10))
    behind = asyncio.create_task(lock.acquire(12, 1))
    assert not await settled(behind)
    wide.cancel()
    assert await settled(behind)
    lock.release(first)
    lock.release(await behind)
    await lock.acquire(0, 100)


async def test_one_that_is_cancelled_as_it_is_granted_lets_go() -> None:
    lock = RangeLock()
    first = await lock.acquire(0, 10)
    second = asyncio.create_task(lock.acquire(0, 10))
    third = asyncio.create_task(lock.acquire(0, 10))
    assert not await settled(second)
    lock.release(first)
    second.cancel()
    assert await settled(third)
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_uninterrupted_work_ends_before_its_caller_does() -> None:
    go, ended = asyncio.Event(), []

    async def work(error: Exception | None) -> None:
        await go.wait()
        ended.append(error)
        if error:
            raise error

    for error in (None, OSError("nobody is told")):
        go.clear()
        task = asyncio.create_task(uninterrupted(work(error)))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended[-1] is error
    with pytest.raises(OSError, match="nobody"):
        await uninterrupted(work(OSError("nobody")))
