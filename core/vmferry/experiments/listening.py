"""From the events of both ends of a migration to phases, rounds and series."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from vmferry.experiments.results import Event, PhaseTime, Result, Round, Series

__all__ = ["Listener"]

_ROUND = ("number", "scanned", "sent", "zeroes", "seconds", "dirty", "memory")
_ENDINGS = ("done", "failed")
_MEMORY = "memory"


class _Gauge(NamedTuple):
    """How far something was when it was last told of: bytes done of a total, in a round."""

    round: int
    done: int
    total: int


class Listener:
    """Takes what source and destination say, and makes a result of it.

    Attributes:
        result: what was heard so far; complete after ``conclude``.

    """

    def __init__(self, result: Result) -> None:
        self.result = result
        self._entered: dict[str, list[tuple[str, float]]] = {"source": [], "destination": []}
        self._rounds: list[tuple[float, dict[str, Any]]] = []
        self._events: list[tuple[float, str, dict[str, Any]]] = []
        self._moved = 0
        self._gauges: dict[str, _Gauge] = {}
        self._series: dict[str, Series] = {"moved": Series(), "pending": Series()}
        self._finished: dict[str, dict[str, Any]] = {}

    def source(self, event: dict[str, Any]) -> None:
        """The source says something."""
        self._hear("source", event)
        kind = event.get("event")
        if kind == "phase_changed":
            self._gauges.clear()  # each phase has gauges of its own
        elif kind == "progress":
            self._progress(event)
        elif kind == "round_finished":
            self._rounds.append((_time(event), event))

    def destination(self, event: dict[str, Any]) -> None:
        """The destination says something."""
        self._hear("destination", event)

    def _hear(self, role: str, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "phase_changed":
            self._entered[role].append((event["phase"], _time(event)))
        elif kind == "event":
            self._events.append((_time(event), role, event))
        elif kind == "finished":
            self._finished[role] = event

    def _progress(self, event: dict[str, Any]) -> None:
        """Add what a gauge has done meanwhile, and what all of this phase have left by now."""
        gauge = _Gauge(event["round"], event["done"], event["total"])
        self._moved += max(0, gauge.done - self._before(event["what"], gauge))
        self._gauges[event["what"]] = gauge
        left = sum(one.total - one.done for one in self._gauges.values())
        self._series["moved"].add(_time(event), self._moved)
        self._series["pending"].add(_time(event), left)

    def _before(self, what: str, gauge: _Gauge) -> int:
        """What it had done when it was last told of.

        Each round of a disk begins at nothing. Memory has one gauge for all its rounds, which goes
        back by what the guest writes.
        """
        last = self._gauges.get(what)
        if last is None or (what != _MEMORY and last.round != gauge.round):
            return 0
        return last.done

    @property
    def begun(self) -> float:
        """When the source began, in seconds since 1970; 0 if it did not."""
        entered = self._entered["source"] or self._entered["destination"]
        return entered[0][1] if entered else 0.0

    def conclude(self) -> None:
        """Put all that was heard into the result, with times since the beginning."""
        result, begun = self.result, self.begun
        result.begun = result.begun or begun
        for role in self._entered:
            result.phases += self._phases(role, begun)
        result.rounds += [
            Round(end=when - begun, **{key: event[key] for key in _ROUND})
            for when, event in self._rounds
        ]
        result.events += [
            Event(time=when - begun, role=role, name=event["name"], facts=event["facts"])
            for when, role, event in self._events
        ]
        for name, series in self._series.items():
            times = [when - begun for when in series.times]
            result.series[name] = Series(times=times, values=series.values)
        result.figures |= self._figures()

    def _phases(self, role: str, begun: float) -> list[PhaseTime]:
        """Beginnings as they were told, lengths as the summary has them if there is one."""
        entered = self._entered[role]
        exact = dict(self._finished.get(role, {}).get("phases", {}))
        found = []
        for (name, when), (_, ended) in pairwise(entered):
            if name not in _ENDINGS:
                seconds = exact.pop(name, ended - when)
                found.append(PhaseTime(role=role, name=name, begin=when - begun, seconds=seconds))
        return found

    def _figures(self) -> dict[str, float | None]:
        here, there = self._finished.get("source", {}), self._finished.get("destination", {})
        guest = here.get("guest_downtime")
        return {
            "total": sum(here["phases"].values()) if here.get("phases") else None,
            "downtime_source": here.get("downtime"),
            "downtime_destination": there.get("downtime"),
            "downtime_guest": there.get("guest_downtime") if guest is None else guest,
            "sent": here.get("sent"),
            "bitmap_bytes": here.get("bitmap_bytes"),
            "pending": here.get("pending"),
            "on_demand": there.get("on_demand", here.get("on_demand")),
        }


def _time(event: dict[str, Any]) -> float:
    """When it was said, in seconds since 1970."""
    return datetime.fromisoformat(event["time"]).timestamp()
