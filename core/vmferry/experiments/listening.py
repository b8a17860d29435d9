"""From the events of both ends of a migration to phases, rounds and series."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

from vmferry.experiments.results import Event, PhaseTime, Result, Round, Series

__all__ = ["Listener"]

_ROUND = ("number", "scanned", "sent", "zeroes", "seconds", "dirty", "memory")
_ENDINGS = ("done", "failed")


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
        self._gauges: dict[tuple[str, int, str], tuple[int, int]] = {}
        self._series: dict[str, Series] = {"moved": Series(), "pending": Series()}
        self._finished: dict[str, dict[str, Any]] = {}

    def source(self, event: dict[str, Any]) -> None:
        """The source says something."""
        self._hear("source", event)
        if event.get("event") == "progress":
            self._progress(event)
        elif event.get("event") == "round_finished":
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
        """Add up what every gauge has done, of all that there ever were."""
        gauge = (event["phase"], event["round"], event["what"])
        before, _ = self._gauges.get(gauge, (0, 0))
        self._moved += max(0, event["done"] - before)
        self._gauges[gauge] = (event["done"], event["total"])
        now = [left for key, left in self._gauges.items() if key[:2] == gauge[:2]]
        self._series["moved"].add(_time(event), self._moved)
        self._series["pending"].add(_time(event), sum(total - done for done, total in now))

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
