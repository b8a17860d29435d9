"""Ctrl-C and SIGTERM: safe before the commit, patient after it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import click

__all__ = ["on_signals", "run_interruptible"]

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@asynccontextmanager
async def on_signals(handler: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``handler`` on each SIGINT or SIGTERM while inside."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def run_interruptible(work: Coroutine[Any, Any, T], hold: Callable[[], str]) -> T:
    """Do ``work``; a signal cancels it, unless ``hold`` names a reason to go on.

    The reason is printed; a second signal cancels all the same.
    """
    task = asyncio.get_running_loop().create_task(work)
    held = False

    def interrupted() -> None:
        nonlocal held
        reason = hold()
        if reason and not held:
            held = True
            click.echo(f"migrate: {reason}; press Ctrl-C again to leave nevertheless", err=True)
        else:
            task.cancel()

    async with on_signals(interrupted):
        return await task
