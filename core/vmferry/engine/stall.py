"""Giving up a connection on which nothing moves, although the peer still answers.

A peer that is gone is noticed by its silence (``wire.link``). One whose disk or hypervisor hangs
goes on sending heartbeats; so does one behind a network that lets small packets through only. What
is limited is the time in which *nothing* moves, never the time that a phase takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from vmferry.engine.meter import Meter
from vmferry.engine.throttle import Throttle
from vmferry.errors import LinkTimeout
from vmferry.wire.link import Link
from vmferry.wire.tasks import until

__all__ = ["unstalled"]

T = TypeVar("T")
_LOOKS = 8
"""How often to look within the time-out."""
_FLUSH = 10


async def unstalled(
    work: Coroutine[Any, Any, T],
    link: Link,
    *,
    timeout: float,
    meter: Meter,
    throttle: Throttle,
    further: Callable[[], object] = lambda: None,
    flushing: Callable[[], bool] = lambda: False,
) -> T:
    """Do ``work`` as long as something moves on ``link``.

    Args:
        work: ended when nothing does.
        link: its frames count as movement, heartbeats do not.
        timeout: seconds; 0 never gives up.
        meter: knows the phase.
        throttle: while its limit holds somebody back, nobody is to blame.
        further: its result changes when something else moves.
        flushing: true while the peer makes durable what it was sent; that moves nothing, and may
            take ten times as long.

    Raises:
        LinkTimeout: nothing moved for ``timeout``; names the phase and the peer.

    """
    if not timeout:
        return await work

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        seen, since = state(), loop.time()
        while loop.time() - since < timeout * (_FLUSH if flushing() else 1):
            await asyncio.sleep(timeout / _LOOKS)
            now = state()
            if now != seen or throttle.waiting:
                seen, since = now, loop.time()
        raise LinkTimeout(
            f"{meter.phase}: nothing moved to or from {link.peer.address} for "
            f"{loop.time() - since:.0f} seconds, although it answers; does a disk or the "
            "hypervisor hang there? (--stall-timeout)"
        )

    def state() -> tuple[object, ...]:
        return link.moved, meter.phase, further()

    return await until(work, watch())
