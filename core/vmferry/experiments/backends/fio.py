"""What a guest's fio reported while it was moved: time series, an event for each pass, a verdict.

fio does its job over and over, and counts anew in each pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmferry.errors import HypervisorError
from vmferry.experiments.results import Event, Result, Series

__all__ = ["failure", "judge_fio", "note_fio"]

_SERIES: Mapping[str, tuple[str, ...]] = {
    "writes": ("writes",),
    "reads": ("reads",),
    "busy": ("write_seconds", "read_seconds"),
    "written_bytes": ("written_bytes",),
    "read_bytes": ("read_bytes",),
}
"""Series by name, each the sum of these counters of a report."""
_SHOWN = 300


def note_fio(result: Result, reports: Sequence[Any], booted: float) -> None:
    """Put what was reported into a result whose ``begun`` is known.

    Args:
        result: gets the series, which go on from pass to pass, and an event for each pass.
        reports: in order, from both hosts: ``vmferry_lab.guest.FioReport``.
        booted: when the guest's ``uptime`` was 0, in seconds since 1970.

    """
    result.series |= {name: Series() for name in _SERIES}
    done = dict.fromkeys(_SERIES, 0.0)
    since = booted - result.begun
    began = reports[0].uptime if reports else 0.0
    for last in _passes(reports):
        for report in last:
            for name, value in done.items():
                result.series[name].add(since + report.uptime, value + _count(report, name))
        end = last[-1]
        done = {name: value + _count(end, name) for name, value in done.items()}
        result.events.append(_event(end, since, end.uptime - began))
        began = end.uptime


def _passes(reports: Sequence[Any]) -> list[list[Any]]:
    passes: dict[int, list[Any]] = {}
    for report in reports:
        passes.setdefault(report.number, []).append(report)
    return list(passes.values())


def _count(report: Any, name: str) -> float:
    return float(sum(getattr(report, part) for part in _SERIES[name]))


def _event(end: Any, since: float, seconds: float) -> Event:
    """The end of a pass, or as far as it had come; ``code`` is ``None`` then."""
    facts = {
        "pass": end.number,
        "code": end.code,
        "error": end.error,
        "seconds": round(seconds, 3),
        "reads": end.reads,
        "read_bytes": end.read_bytes,
        "read_latency": end.read_seconds / end.reads if end.reads else None,
        "writes": end.writes,
        "written_bytes": end.written_bytes,
        "write_latency": end.write_seconds / end.writes if end.writes else None,
    }
    return Event(time=since + end.uptime, role="guest", name="fio", facts=facts)


def failure(reports: Sequence[Any]) -> Any | None:
    """The first report of an error, or of an end that was not good; fio does not go on then."""
    return next((report for report in reports if report.code or report.error), None)


def judge_fio(reports: Sequence[Any], said: str) -> None:
    """Raise ``HypervisorError`` if fio failed in any pass, with what it said of it."""
    if found := failure(reports):
        words = " ".join(said.split())[:_SHOWN] or "it does not say why"
        raise HypervisorError(
            f"the guest's fio failed in pass {found.number}, code {found.code}, "
            f"error {found.error}: {words}"
        )
