"""Running several things as one, with one plain exception when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["plain", "together", "until"]

T = TypeVar("T")


def plain(error: BaseException) -> BaseException:
    """The first cause inside an exception group, or ``error`` itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run all of ``work`` at once; return the results in order.

    The first failure cancels the rest and is raised by itself, once all have ended.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failed:
        raise plain(failed) from None
    return [task.result() for task in tasks]


async def until(goal: Coroutine[Any, Any, T], *beside: Coroutine[Any, Any, Any]) -> T:
    """Run ``goal`` with others beside it; once it is reached, end them and return its result.

    The first failure of any of them ends all and is raised by itself.
    """
    try:
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(one) for one in beside]
            result = await group.create_task(goal)
            for helper in helpers:
                helper.cancel()
    except BaseExceptionGroup as failed:
        raise plain(failed) from None
    return result
