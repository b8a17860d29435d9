"""Events in words, for the displays that people read."""

from __future__ import annotations

from typing import Any

from vmferry.api import Phase, Progress, RoundReport, Summary
from vmferry.units import format_duration, format_rate, format_size

__all__ = [
    "EVENTS",
    "PHASES",
    "ROUND_COLUMNS",
    "amount",
    "event_line",
    "fraction",
    "outcome_line",
    "progress_line",
    "rate",
    "round_cells",
    "round_line",
    "summary_rows",
    "time_left",
]

PHASES = {
    Phase.HANDSHAKE: "agreeing with the other host",
    Phase.PUSH_DISK: "PUSH: copying the disks, the guest runs at the source",
    Phase.PUSH_MEMORY: "PUSH: copying memory, the guest runs at the source",
    Phase.STOP: "STOP: switching, the guest stands still",
    Phase.PULL: "PULL: fetching the rest, the guest runs at the destination",
    Phase.DONE: "done",
    Phase.FAILED: "failed",
}
"""What each phase means to the guest."""

EVENTS = {
    "listening": "listening at {address}",
    "guest-started": "guest {guest} runs and writes; everything is below {folder}",
    "finding": "{severity}: {text}",
    "ruling": "{decision}: {reason}",
    "link-lost": "the connection is lost: {error}",
    "waiting": "waiting for the source to come back",
    "reconnected": "connected to the other host again",
    "guest-stopped": "the guest does not run any more: {reason}",
    "peer-not-told": "the destination could not be told: {error}",
    "source-failed": "the source gave up: {error}",
    "no-pivot": "{reason}",
    "verdict": "{verdict}: of {acknowledged} acknowledged writes, in {checked} blocks compared, "
    "{lost} are lost and {wrong} wrong; {bad_reads} bad reads, {bad_memory} bad pages of memory",
}
"""What the engine's events mean."""

ROUND_COLUMNS = ("round", "made equal", "sent", "zeroes", "time", "rate", "dirtied meanwhile")
"""Headings of the cells that ``round_cells`` gives."""


def fraction(progress: Progress) -> float:
    """How much is done, from 0 to 1; nothing to do is all done."""
    return min(1.0, progress.done / progress.total) if progress.total > 0 else 1.0


def amount(progress: Progress) -> str:
    """``1.2 GiB of 4.0 GiB``."""
    return f"{format_size(progress.done)} of {format_size(progress.total)}"


def rate(progress: Progress) -> str:
    """Rate for people, or ``""`` while nothing moves."""
    return format_rate(progress.rate) if progress.rate > 0 else ""


def time_left(progress: Progress) -> str:
    """``1:05 left`` at the present rate, or ``""`` if that cannot be told."""
    if progress.rate <= 0 or progress.done >= progress.total:
        return ""
    return f"{format_duration((progress.total - progress.done) / progress.rate)} left"


def progress_line(progress: Progress) -> str:
    """``disk0 45% (1.2 GiB of 4.0 GiB) 93.1 MiB/s 0:31 left``."""
    name = f"{progress.what} {fraction(progress):.0%} ({amount(progress)})"
    note = f"[{progress.note}]" if progress.note else ""
    return " ".join(part for part in (name, rate(progress), time_left(progress), note) if part)


def round_cells(report: RoundReport) -> tuple[str, ...]:
    """A round as cells under ``ROUND_COLUMNS``."""
    return (
        f"{report.number}{' + memory' if report.memory else ''}",
        format_size(report.scanned),
        format_size(report.sent),
        format_size(report.zeroes),
        format_duration(report.seconds),
        format_rate(report.send_rate) if report.seconds > 0 else "",
        f"{format_size(report.dirty)} ({format_rate(report.dirty_rate)})",
    )


def round_line(report: RoundReport) -> str:
    """A round in one line."""
    number, scanned, sent, zeroes, seconds, _, dirty = round_cells(report)
    return (
        f"round {number}: {scanned} made equal in {seconds}, {sent} sent, {zeroes} of zeroes; "
        f"the guest dirtied {dirty}"
    )


def event_line(name: str, facts: dict[str, Any]) -> str:
    """An event and its facts in one line; in a sentence if it is one of the engine's own."""
    sentence = EVENTS.get(name)
    if sentence is not None:
        try:
            return sentence.format(**facts)
        except KeyError:  # raised by somebody else under the same name
            pass
    return " ".join([name, *(f"{key}={value}" for key, value in facts.items())])


def outcome_line(summary: Summary) -> str:
    """How the migration ended, in one sentence."""
    where = "it is not known where the guest runs"
    if summary.owner in {"source", "destination"}:
        where = f"the guest runs at the {summary.owner}"
    reason = f": {summary.error}" if summary.error else ""
    return f"migration of {summary.guest} {summary.outcome}; {where}{reason}"


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """The figures of a summary with their labels; those that say nothing are left out."""
    phases = ", ".join(f"{name} {format_duration(time)}" for name, time in summary.phases.items())
    rows = [
        ("downtime", _duration(summary.downtime)),
        ("downtime the guest saw", _duration(summary.guest_downtime)),
        ("total time", _duration(sum(summary.phases.values()) if summary.phases else None)),
        ("phases", phases),
        ("rounds", str(len(summary.rounds)) if summary.rounds else ""),
        ("sent", format_size(summary.sent) if summary.sent else ""),
        ("dirty bitmaps", format_size(summary.bitmap_bytes) if summary.bitmap_bytes else ""),
        ("dirty at the switch", format_size(summary.pending)),
        ("blocks fetched on demand", str(summary.on_demand)),
    ]
    rows += [(name.replace("_", " "), str(count)) for name, count in summary.counters.items()]
    return [(label, text) for label, text in rows if text]


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else format_duration(seconds)
