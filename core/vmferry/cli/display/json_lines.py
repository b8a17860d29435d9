"""Events for programs: one JSON object per line, described in ``docs/json-events.md``."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from vmferry.api import Phase, Progress, RoundReport, Summary
from vmferry.cli.display.base import Display

__all__ = ["JsonDisplay"]


class JsonDisplay(Display):
    """Writes each event as it comes, flushed, so that a pipe sees it at once.

    ``clock`` gives seconds since 1970.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._stream, self._clock = stream, clock

    def phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Write a ``phase_changed`` object."""
        self._write("phase_changed", job, {"role": role, "phase": phase})

    def round_finished(self, job: str, report: RoundReport) -> None:
        """Write a ``round_finished`` object."""
        self._write("round_finished", job, msgspec.structs.asdict(report))

    def progress(self, job: str, progress: Progress) -> None:
        """Write a ``progress`` object."""
        self._write("progress", job, msgspec.structs.asdict(progress))

    def event(self, job: str, name: str, facts: dict[str, Any]) -> None:
        """Write an ``event`` object."""
        self._write("event", job, {"name": name, "facts": facts})

    def finished(self, summary: Summary) -> None:
        """Write a ``finished`` object."""
        facts = msgspec.structs.asdict(summary)
        self._write("finished", facts.pop("job"), facts)

    def _write(self, event: str, job: str, facts: dict[str, Any]) -> None:
        moment = datetime.fromtimestamp(self._clock(), UTC)
        stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = msgspec.json.encode(
            {"event": event, "time": stamp, "job": job} | facts, enc_hook=str
        )
        self._stream.write(line.decode() + "\n")
        self._stream.flush()
