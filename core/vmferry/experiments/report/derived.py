"""From counters to curves: rates, latency, and how the guest fared in each part of a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vmferry.experiments.results import PhaseTime, Series
from vmferry.units import MIB

__all__ = ["AFTER", "BEFORE", "Curve", "Fare", "curves", "fares", "median_of"]

BEFORE, AFTER = "before", "after"
"""The parts of a run around its phases."""
_BINS = 160
_LEAST = 3
"""Intervals between samples that a part must be long for the guest's pace in it to be told."""


class Curve(NamedTuple):
    """Values over time."""

    times: list[float]
    values: list[float]


class Fare(NamedTuple):
    """How the guest fared: requests per second and mean seconds of one (``None``: not known)."""

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
    """The guest's pace in each part of a run: before the move, in each of its phases, and after.

    A part that is too short for its samples, or has none, is there without a pace.
    """
    done, busy = _requests(series), series.get("busy", Series())
    if len(done.times) < 2 or not phases:
        return {}
    end = max(one.begin + one.seconds for one in phases)
    spans = {BEFORE: (done.times[0], 0.0)}
    spans |= {one.name: (one.begin, one.begin + one.seconds) for one in phases}
    spans[AFTER] = (end, done.times[-1])
    return {name: _fare(done, busy, *span) for name, span in spans.items()}


def _fare(done: Series, busy: Series, begin: float, end: float) -> Fare:
    """The pace between the first and the last sample inside.

    Which part has what was counted across an end of it, nobody can tell. A share by time would
    give STOP, in which there is nothing, requests of before and after.
    """
    times = np.asarray(done.times)
    inside = times[(times >= begin) & (times <= end)]
    long = end - begin >= _LEAST * np.median(np.diff(times))
    if not long or len(inside) < 2 or inside[-1] <= inside[0]:
        return Fare(None, None)
    first, last = float(inside[0]), float(inside[-1])
    count = _growth(done, first, last)
    seconds = _growth(busy, first, last) if busy.times else 0.0
    return Fare(count / (last - first), seconds / count if count >= 1 and seconds else None)


def _growth(counter: Series, begin: float, end: float) -> float:
    first, last = np.interp([begin, end], counter.times, counter.values)
    return float(last - first)


def median_of(values: Sequence[float | None]) -> float | None:
    """The median of those there are."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None
