"""State machines of hypothesis whose rules are coroutines on the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

__all__ = ["Await", "run_machine"]

ResultT = TypeVar("ResultT")
Await = Callable[[Coroutine[Any, Any, ResultT]], ResultT]
"""Runs a coroutine on the test's event loop; called from the thread of the machine."""


async def run_machine(
    make: Callable[[Await[Any]], type], *, examples: int, steps: int, shrink: bool = False
) -> None:
    """Run the machine that ``make`` returns in a thread; skips where hypothesis is missing.

    The same rules are tried each time. With ``shrink`` the shortest sequence that fails is looked
    for, which may take minutes.
    """
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
    stateful = pytest.importorskip("hypothesis.stateful")
    loop, failures = asyncio.get_running_loop(), list[BaseException]()

    def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result()
        except BaseException as failure:
            failures.append(failure)
            raise

    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink)[: 1 + shrink],
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    try:
        await asyncio.to_thread(stateful.run_state_machine_as_test, make(run), settings=settings)
    except hypothesis.errors.Flaky as flaky:  # a race need not be lost each time
        raise failures[0] if failures else flaky from None
