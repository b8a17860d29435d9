"""Waiting that a cancellation does not cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Chores", "finished", "outlast"]

T = TypeVar("T")


async def outlast(future: asyncio.Future[T]) -> T:
    """Return what ``future`` does; when cancelled, let it finish first, then be cancelled."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()
        raise


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` to its end, also when cancelled meanwhile; for what tidies up."""
    return await outlast(asyncio.ensure_future(work))


class Chores:
    """What tidies up and need not be waited for at once: done in order, beside everything else."""

    def __init__(self) -> None:
        self._last: asyncio.Future[None] | None = None

    def add(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` after what was added before; what comes after a failure is done all the same.

        The first failure is raised by ``done``.
        """
        self._last = asyncio.ensure_future(_after(self._last, work))

    async def done(self) -> None:
        """Return when all that was added is done, also when cancelled meanwhile."""
        last, self._last = self._last, None
        if last is not None:
            await outlast(last)


async def _after(before: asyncio.Future[None] | None, work: Coroutine[Any, Any, None]) -> None:
    failures = []
    for each in (before, work):
        try:
            if each is not None:
                await each
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
