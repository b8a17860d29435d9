"""Work that ends in its own time, even when whoever asked for it is cancelled.

A disk request that is cancelled must not return while its I/O is under way: the buffer would be
used again, and a lock let go, with a write still to land.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["outlast", "uninterrupted"]

T = TypeVar("T")


async def outlast(task: asyncio.Task[T]) -> T:
    """Result of ``task``. Cancelled, this waits for the task to end all the same, then raises."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # the caller is gone; it counts as looked at
    raise cancelled


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Result of ``work``, which a cancellation of the caller neither stops nor outruns."""
    return await outlast(asyncio.ensure_future(work))
