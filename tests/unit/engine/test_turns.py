"""Who goes first while the guest waits for single blocks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vmferry.engine import turns
from vmferry.simulation.loop import run


async def pushed(turns_: turns.Turns, seconds: float) -> float:
    """How long of ``seconds`` the push was let go, in steps of a millisecond."""
    loop = asyncio.get_running_loop()
    end, let = loop.time() + seconds, 0.0
    while loop.time() < end:
        await turns_.push()
        await asyncio.sleep(0.001)
        let += 0.001
    return let


async def reading(turns_: turns.Turns, pause: float) -> None:
    while True:
        turns_.asked()
        await asyncio.sleep(0.0005)
        turns_.answered()
        await asyncio.sleep(pause)


def measured(pause: float | None) -> float:
    async def main() -> float:
        ours = turns.Turns()
        reader = asyncio.create_task(reading(ours, pause)) if pause is not None else None
        share = await pushed(ours, 4.0) / 4.0
        if reader:
            reader.cancel()
        return share

    result: Any = run(main())
    return float(result)


def test_without_a_waiting_guest_the_push_is_never_held() -> None:
    assert measured(None) == pytest.approx(1, abs=0.01)


def test_a_guest_that_keeps_asking_leaves_the_push_its_turns() -> None:
    assert measured(0.0002) == pytest.approx(0.25, abs=0.05)


def test_a_guest_that_asks_now_and_then_holds_the_push_for_moments_only() -> None:
    assert measured(0.1) > 0.9
