"""Chores are done in order, each whatever becomes of the others, and the first failure is told."""

from __future__ import annotations

import asyncio

import pytest

from vmferry_support.outlast import Chores


async def test_they_are_done_in_order_beside_the_rest() -> None:
    done = []

    async def do(number: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        done.append(number)

    chores = Chores()
    chores.add(do(1, 0.02))
    chores.add(do(2, 0))
    assert not done
    await chores.done()
    assert done == [1, 2]
    await chores.done()


async def test_a_failure_is_told_once_and_stops_nothing() -> None:
    done = []

    async def fail(text: str) -> None:
        raise ValueError(text)

    async def do() -> None:
        done.append(True)

    chores = Chores()
    for work in (fail("first"), do(), fail("second"), do()):
        chores.add(work)
    with pytest.raises(ValueError, match="first"):
        await chores.done()
    assert len(done) == 2
    await chores.done()


async def test_who_is_cancelled_has_waited_all_the_same() -> None:
    done = []

    async def do() -> None:
        await asyncio.sleep(0.02)
        done.append(True)

    chores = Chores()
    chores.add(do())
    waiting = asyncio.ensure_future(chores.done())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done
