"""Blocking calls in threads, whose end a cancelled caller waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vmferry_support.outlast import finished

__all__ = ["in_thread"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``function`` in a thread; when cancelled, let it end first, then be cancelled.

    So nobody closes what the thread works on, and no second call begins beside it.
    """
    return await finished(asyncio.to_thread(function, *args, **kwargs))
