"""Curves, and how the guest fared, are what the counters say."""

from __future__ import annotations

import pytest

from vmferry.experiments.report.derived import AFTER, BEFORE, Fare, curves, fares
from vmferry.experiments.results import PhaseTime, Series

NOT_KNOWN = Fare(None, None)


def phase(name: str, begin: float, seconds: float) -> PhaseTime:
    return PhaseTime(role="source", name=name, begin=begin, seconds=seconds)


def test_curves_and_fares_are_what_the_counters_say() -> None:
    times = [float(second) for second in range(11)]
    series = {
        "moved": Series(times=times, values=[second * (1 << 20) for second in times]),
        "writes": Series(times=times, values=[min(second, 5) * 100 for second in times]),
        "busy": Series(times=times, values=[min(second, 5) * 0.2 for second in times]),
    }
    found = curves(series)
    assert found["moved"].values == pytest.approx([1.0] * 11)
    assert max(found["requests"].values) == pytest.approx(100)
    assert found["latency"].values == pytest.approx([2.0] * len(found["latency"].values))
    fared = fares(series, [phase("stop", 5, 3), phase("push-disk", 1, 4)])
    assert fared["push-disk"] == (pytest.approx(100), pytest.approx(0.002))
    assert fared["stop"] == (0.0, None)


def test_a_baselines_parts_are_looked_at_too() -> None:
    times = [float(second) for second in range(-4, 15)]
    fared = fares(
        {"reads": Series(times=times, values=[10.0 * (second + 4) for second in times])},
        [phase("sync", 0, 5), phase("migrate", 5, 5)],
    )
    assert list(fared) == [BEFORE, "sync", "migrate", AFTER]
    assert all(one.requests == pytest.approx(10) for one in fared.values())


def test_a_part_shorter_than_three_intervals_of_samples_has_no_pace() -> None:
    times = [tenth / 10 for tenth in range(21)]
    series = {"writes": Series(times=times, values=[100 * time for time in times])}
    fared = fares(
        series, [phase("handshake", 0.5, 0.28), phase("stop", 0.81, 0.08), phase("pull", 1, 0.32)]
    )
    assert fared["handshake"] == fared["stop"] == NOT_KNOWN
    assert fared["pull"].requests == pytest.approx(100)


def test_requests_across_the_ends_of_a_part_are_not_its_own() -> None:
    counted = {0: 0, 1: 100, 2: 200, 3: 300, 4: 390, 5: 390, 6: 390, 7: 390, 8: 480, 9: 580}
    phases = [phase("push-disk", 0, 3.9), phase("stop", 3.9, 3.2)]
    fared = fares({"writes": counts(counted)}, phases)
    assert fared["push-disk"].requests == pytest.approx(100)
    assert fared["stop"].requests == 0
    for silent in (4, 5, 6, 7):
        del counted[silent]
    assert fares({"writes": counts(counted)}, phases)["stop"] == NOT_KNOWN


def counts(counted: dict[int, int]) -> Series:
    """A counter by the second."""
    return Series(times=[float(time) for time in counted], values=list(counted.values()))
