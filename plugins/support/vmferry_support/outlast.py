"""Waiting that a cancellation does not cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["finished", "outlast"]

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
