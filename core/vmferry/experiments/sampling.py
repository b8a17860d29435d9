"""Asks a guest again and again how it is doing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from vmferry.api import TrialStatus
from vmferry.errors import VmferryError
from vmferry.experiments.results import Result, Series

__all__ = ["sampled"]

_NAMES = ("writes", "reads", "busy")


@asynccontextmanager
async def sampled(
    status: Callable[[], Awaitable[TrialStatus]], result: Result, pause: float
) -> AsyncIterator[None]:
    """Sample the guest every ``pause`` seconds while inside; the series go into ``result``.

    ``writes`` and ``reads`` are counts since the guest's start, ``busy`` the seconds they took
    together. A guest that cannot be asked for a moment leaves a gap.
    """
    series = {name: Series() for name in _NAMES}
    task = asyncio.create_task(_sample(status, series, pause))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for name, one in series.items():
            if any(one.values):
                times = [when - result.begun for when in one.times] if result.begun else one.times
                result.series[name] = Series(times=times, values=one.values)


async def _sample(
    status: Callable[[], Awaitable[TrialStatus]], series: dict[str, Series], pause: float
) -> None:
    while True:
        with contextlib.suppress(VmferryError, OSError, TimeoutError):
            found, now = await status(), time.time()
            for name, one in series.items():
                one.add(now, float(getattr(found, name)))
        await asyncio.sleep(pause)
