"""An asyncio event loop on virtual time: no sleeping, no threads, no sockets, no chance.

When nothing is ready, the clock jumps to the next timer. What asyncio itself would take from
memory addresses (the order in which a ``TaskGroup`` cancels, or ``asyncio.wait`` goes through a
set) follows the order of creation instead, so that one seed gives one course of events in every
process.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import itertools
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeVar

from vmferry.simulation import chance

__all__ = ["SimulationStuck", "VirtualLoop", "run"]

T = TypeVar("T")

_BUSY_STEPS = 200_000
"""Turns of the loop at one instant of virtual time that pass for going round in circles."""
_FRAMES = 6


class SimulationStuck(Exception):
    """Nothing will ever happen again, or never anything else; the message lists who waits."""


class _SimTask(asyncio.Task[T]):
    """A task whose hash is its number."""

    def __init__(self, coro: Coroutine[Any, Any, T], number: int, **options: Any) -> None:
        self.number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class _SimFuture(asyncio.Future[T]):
    """A future whose hash is its number."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class _Clockwork:
    """Stands where a selector would: time passes instead of being waited for."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[NoReturn]:
        self._loop.pass_time(timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """A deterministic event loop.

    Args:
        seed: decides the order of what is ready at the same time, with ``shuffle``.
        shuffle: callbacks that are ready together run in a random order instead of the order they
            became ready in. A correct program does not depend on it.
        limit: virtual seconds after which a program that has not ended counts as stuck.

    Attributes:
        complaints: what asyncio had to say about exceptions that nobody looked at.

    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, seed: int = 0, *, shuffle: bool = False, limit: float = 86400.0) -> None:
        super().__init__()
        self._now = 0.0
        self._limit = limit
        self._busy = 0
        self._thread = threading.get_ident()
        self._numbers = itertools.count(1)
        self._order = chance.stream(seed, "order") if shuffle else None
        self._selector = _Clockwork(self)
        self.complaints: list[str] = []
        self.set_exception_handler(self._complain)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def pass_time(self, timeout: float | None) -> None:
        """Let the clock jump to the next timer; raise ``SimulationStuck`` if there is none."""
        if timeout == 0:
            self._stay()
            return
        if timeout is None:
            raise SimulationStuck(self.report("nothing is left that could happen"))
        self._busy = 0
        self._now = max(self._now, self._scheduled[0].when())
        if self._now > self._limit:
            raise SimulationStuck(self.report(f"no end after {self._limit:g} s"))

    def _stay(self) -> None:
        self._busy += 1
        if self._busy > _BUSY_STEPS:
            self._busy = 0
            raise SimulationStuck(self.report("busy without any time passing"))
        if self._order and len(self._ready) > 1:
            self._order.shuffle(self._ready)

    def report(self, why: str) -> str:
        """``why``, the time, and where each unfinished task waits, oldest first."""
        lines = [f"{why} (at {self._now:.6f} s); unfinished tasks:"]
        for task in self.unfinished():
            text = io.StringIO()
            task.print_stack(limit=_FRAMES, file=text)
            lines.append(text.getvalue().rstrip())
        return "\n".join(lines)

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """All tasks that are not done, oldest first."""
        return sorted(asyncio.all_tasks(self), key=hash)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Make a task; tasks without a name get a number of this loop's own."""
        number = next(self._numbers)
        name = name or f"task-{number}"
        return _SimTask(coro, number, loop=self, name=name, context=context, **options)

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future."""
        return _SimFuture(next(self._numbers), self)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run ``func`` on this thread, in the next turn of the loop."""
        future: asyncio.Future[T] = self.create_future()
        self.call_soon(_execute, future, func, args)
        return future

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, **options: Any
    ) -> asyncio.Handle:
        """Do ``call_soon``; refuse other threads, which have no place in a simulation."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("a thread was used in a simulation; run the work inline")
        return self.call_soon(callback, *args, **options)

    def _process_events(self, event_list: list[Any]) -> None:
        return

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.complaints.append(f"{context.get('message')}: {error!r}")

    def wind_up(self) -> None:
        """Cancel what still runs, in order, and close the loop."""
        try:
            leftover = self.unfinished()
            for task in leftover:
                task.cancel()
            if leftover:
                self._limit = self._now + 3600
                self.run_until_complete(_settle(leftover))
            self.run_until_complete(self.shutdown_asyncgens())
        except SimulationStuck as stuck:
            self.complaints.append(f"tasks that do not end when cancelled: {stuck}")
        finally:
            self.close()


def _execute(future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        future.set_result(func(*args))
    except Exception as error:
        future.set_exception(error)


async def _settle(tasks: list[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def run(
    main: Coroutine[Any, Any, T], *, seed: int = 0, shuffle: bool = False, limit: float = 86400.0
) -> T:
    """Run ``main`` on a ``VirtualLoop`` of its own and return its result.

    Raises:
        SimulationStuck: ``main`` cannot end, goes round in circles, or takes more than ``limit``
            virtual seconds.

    """
    loop = VirtualLoop(seed, shuffle=shuffle, limit=limit)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.wind_up()
