"""From counters to curves: rates, latency, and how the guest fared in each part of a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vmferry.experiments.results import PhaseTime, Series
from vmferry.units import MIB

__all__ = ["PARTS", "Curve", "Fare", "curves", "fares"]

PARTS = ("before", "push-disk", "push-memory", "stop", "pull", "after")
"""Parts of a run in which the guest's pace is looked at."""
_BINS = 160


class Curve(NamedTuple):
    """Values over time."""

    times: list[float]
    values: list[float]


class Fare(NamedTuple):
    """How the guest fared: requests per second and mean seconds of one (``None``: none)."""

    requests: float | None
    latency: float | None


def curves(series: Mapping[str, Series]) -> dict[str, Curve]:
    """What can be drawn of a run, by name.

    ``moved`` in MiB a second, ``pending`` in MiB, ``requests`` a second, ``latency`` in ms. What is
    moved is made equal at the destination: holes, zeroes and what is compressed count whole, so it
    is not what goes over the link.
    """
    found = {}
    if len(series.get("moved", Series()).times) > 1:
        rate = _rate(series["moved"])
        found["moved"] = Curve(rate.times, [value / MIB for value in rate.values])
    if series.get("pending", Series()).times:
        pending = series["pending"]
        found["pending"] = Curve(pending.times, [value / MIB for value in pending.values])
    done = _requests(series)
    if len(done.times) > 1:
        found["requests"] = _rate(done)
        if "busy" in series:
            found["latency"] = _latency(done, series["busy"])
    return found


def _requests(series: Mapping[str, Series]) -> Series:
    """Writes and reads together."""
    writes, reads = series.get("writes", Series()), series.get("reads", Series())
    if not reads.times or not writes.times:
        return writes if writes.times else reads
    total = np.asarray(writes.values) + np.interp(writes.times, reads.times, reads.values)
    return Series(times=writes.times, values=total.tolist())


def _grid(times: Sequence[float]) -> np.ndarray:
    """Times no finer than the samples, and no more than can be drawn."""
    return np.linspace(times[0], times[-1], min(_BINS, len(times)) + 1)


def _rate(counter: Series) -> Curve:
    """Growth of a counter per second, at the middles of equal steps."""
    grid = _grid(counter.times)
    steps = np.diff(np.interp(grid, counter.times, counter.values))
    width = max(float(grid[1] - grid[0]), 1e-9)
    return Curve(((grid[1:] + grid[:-1]) / 2).tolist(), (steps / width).tolist())


def _latency(done: Series, busy: Series) -> Curve:
    """Mean milliseconds of the requests that ended in each step; steps without one are left out."""
    grid = _grid(done.times)
    counts = np.diff(np.interp(grid, done.times, done.values))
    seconds = np.diff(np.interp(grid, busy.times, busy.values))
    some = counts > 0.5
    middles = (grid[1:] + grid[:-1]) / 2
    return Curve(middles[some].tolist(), (1000 * seconds[some] / counts[some]).tolist())


def fares(series: Mapping[str, Series], phases: Sequence[PhaseTime]) -> dict[str, Fare]:
    """The guest's pace in each of ``PARTS`` that the run has."""
    done, busy = _requests(series), series.get("busy", Series())
    if len(done.times) < 2 or not phases:
        return {}
    end = max(one.begin + one.seconds for one in phases)
    spans = {"before": (done.times[0], 0.0), "after": (end, done.times[-1])}
    spans |= {one.name: (one.begin, one.begin + one.seconds) for one in phases}
    return {name: _fare(done, busy, *spans[name]) for name in PARTS if name in spans}


def _fare(done: Series, busy: Series, begin: float, end: float) -> Fare:
    begin, end = max(begin, done.times[0]), min(end, done.times[-1])
    if end <= begin:
        return Fare(None, None)
    count = _growth(done, begin, end)
    seconds = _growth(busy, begin, end) if busy.times else 0.0
    return Fare(count / (end - begin), seconds / count if count >= 1 and seconds else None)


def _growth(counter: Series, begin: float, end: float) -> float:
    first, last = np.interp([begin, end], counter.times, counter.values)
    return float(last - first)


def median_of(values: Sequence[float | None]) -> float | None:
    """The median of those there are."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None
