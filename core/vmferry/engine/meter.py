"""Counts what moves, and tells observers a few times a second."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from vmferry.api.hooks import Phase, Progress
from vmferry.plugins import Hooks

__all__ = ["Gauge", "Meter"]

_SPAN = 3.0
_TICK = 0.25


class Gauge:
    """One thing that moves: bytes done of a total, and the rate over the last seconds."""

    def __init__(self, what: str, total: int, number: int = -1) -> None:
        self.what, self.total, self.number = what, total, number
        self.done = 0
        self.note = ""
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> None:
        """``count`` more bytes are done."""
        self.done += count

    def rate(self, now: float) -> float:
        """Bytes per second over the last few seconds."""
        self._seen.append((now, self.done))
        while self._seen[0][0] < now - _SPAN:
            self._seen.popleft()
        then, before = self._seen[0]
        return (self.done - before) / (now - then) if now > then else 0.0


class Meter:
    """The gauges of one job, reported to the hooks while ``run`` runs."""

    def __init__(self, job: str, role: str, hooks: Hooks) -> None:
        self.job, self.role, self._hooks = job, role, hooks
        self.phase = Phase.HANDSHAKE
        self.seconds: dict[str, float] = {}
        self._since = 0.0
        self._gauges: dict[str, Gauge] = {}
        self._refresh: dict[str, Callable[[Gauge], None]] = {}

    def enter(self, phase: Phase) -> None:
        """A phase begins: its predecessor's time is noted, its gauges are told of and go.

        So a phase that is shorter than the time between reports has one, too.
        """
        self.report()
        now = asyncio.get_running_loop().time()
        if self._since:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._since
        self._since = now
        self.phase = phase
        self._gauges.clear()
        self._refresh.clear()
        self._hooks.phase_changed(self.job, self.role, phase)

    def gauge(
        self,
        what: str,
        total: int,
        number: int = -1,
        refresh: Callable[[Gauge], None] | None = None,
    ) -> Gauge:
        """A gauge from zero; ``refresh`` is called before each report to bring it up to date."""
        gauge = self._gauges[what] = Gauge(what, total, number)
        self._refresh.pop(what, None)
        if refresh is not None:
            self._refresh[what] = refresh
        return gauge

    def add(self, what: str, count: int) -> None:
        """``count`` more bytes of something are done."""
        self._gauges[what].add(count)

    def report(self) -> None:
        """Tell the observers about every gauge."""
        now = asyncio.get_running_loop().time()
        for gauge in list(self._gauges.values()):
            if (refresh := self._refresh.get(gauge.what)) is not None:
                refresh(gauge)
            self._hooks.progress(self.job, self._progress(gauge, now))

    def _progress(self, gauge: Gauge, now: float) -> Progress:
        return Progress(
            phase=self.phase,
            what=gauge.what,
            done=min(gauge.done, gauge.total),
            total=gauge.total,
            rate=gauge.rate(now),
            round=gauge.number,
            note=gauge.note,
        )

    async def run(self) -> None:
        """Report for ever; cancel to end."""
        while True:
            await asyncio.sleep(_TICK)
            self.report()
