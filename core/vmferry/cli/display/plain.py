"""Events as plain lines, for logs and pipes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TextIO

from vmferry.api import Phase, Progress, RoundReport, Summary
from vmferry.cli.display.base import Display
from vmferry.cli.display.words import (
    PHASES,
    event_line,
    outcome_line,
    progress_line,
    round_line,
    summary_rows,
)

__all__ = ["PlainDisplay"]


class PlainDisplay(Display):
    """One line for each phase, round and event, and at most one line of progress per second.

    A line of progress tells of everything that moved since the last one; what a phase, round or
    summary makes stale is dropped. ``clock`` gives seconds.
    """

    INTERVAL = 1.0

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._moved: dict[tuple[str, str], Progress] = {}
        self._quiet_until = float("-inf")

    def phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Write the phase."""
        self._moved.clear()
        self._write(job, PHASES[phase])

    def round_finished(self, job: str, report: RoundReport) -> None:
        """Write the round's figures."""
        self._moved.clear()
        self._write(job, round_line(report))

    def progress(self, job: str, progress: Progress) -> None:
        """Write how far everything is, unless that was done less than a second ago."""
        self._moved[job, progress.what] = progress
        if self._clock() >= self._quiet_until:
            self._write_progress()

    def event(self, job: str, name: str, facts: dict[str, Any]) -> None:
        """Write the event with its facts."""
        self._write(job, event_line(name, facts))

    def finished(self, summary: Summary) -> None:
        """Write the outcome and its figures."""
        self._moved.clear()
        self._write(summary.job, outcome_line(summary))
        for label, text in summary_rows(summary):
            self._write(summary.job, f"  {label}: {text}")

    def _write_progress(self) -> None:
        jobs: dict[str, list[str]] = {}
        for (job, _), progress in self._moved.items():
            jobs.setdefault(job, []).append(progress_line(progress))
        for job, parts in jobs.items():
            self._write(job, "; ".join(parts))
        self._moved.clear()
        self._quiet_until = self._clock() + self.INTERVAL

    def _write(self, job: str, text: str) -> None:
        self._stream.write(f"[{job}] {text}\n" if job else f"{text}\n")
        self._stream.flush()
