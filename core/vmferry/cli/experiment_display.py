"""How far a sweep is: a bar on a terminal, lines elsewhere, JSON on request."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vmferry.experiments.matrix import Run
from vmferry.experiments.parameters import show_value
from vmferry.experiments.results import Result
from vmferry.experiments.sweep import Tally
from vmferry.units import format_duration

__all__ = ["SweepProgress", "choose_progress"]


def _name(run: Run) -> str:
    shown = run.cell.shown
    axes = ("method", "hypervisor", "workload", "block_size", "disk_size")
    words = [show_value(axis, shown[axis]) for axis in axes if shown[axis] is not None]
    return f"#{run.position} {' '.join(words)}, repetition {run.repetition}"


def _ending(result: Result) -> str:
    figures = result.figures
    parts = [
        f"{label} {format_duration(seconds)}"
        for label, name in (("total", "total"), ("downtime", "downtime_guest"))
        if (seconds := figures.get(name)) is not None
    ]
    return f"{result.outcome}: {result.error or ', '.join(parts)}"


class SweepProgress:
    """Shows nothing; base of those that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def observe(self, run: Run, result: Result | None, tally: Tally) -> None:
        """A run begins, or has ended."""

    def end(self, tally: Tally) -> None:
        """The sweep is over."""

    def close(self) -> None:
        """Give the terminal back."""


class _Lines(SweepProgress):
    """A line for each run that has ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def observe(self, run: Run, result: Result | None, tally: Tally) -> None:
        if result is not None:
            eta = f", {format_duration(tally.eta)} left" if tally.left and tally.eta else ""
            done = tally.total - tally.left
            self._say(f"[{done}/{tally.total}{eta}] {_name(run)}: {_ending(result)}")

    def end(self, tally: Tally) -> None:
        self._say(
            f"{tally.done} runs done, {tally.failed} failed, {tally.before} had been done before"
        )

    def _say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class _Bar(_Lines):
    """A bar below the lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(sys.stdout)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
        )
        self._task = self._bar.add_task("", total=None, eta="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def observe(self, run: Run, result: Result | None, tally: Tally) -> None:
        eta = f"{format_duration(tally.eta)} left" if tally.left and tally.eta else ""
        self._bar.update(
            self._task,
            description=_name(run),
            total=tally.total,
            completed=tally.total - tally.left,
            eta=eta,
        )
        super().observe(run, result, tally)

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


class _Json(SweepProgress):
    """An object for each beginning and ending."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def observe(self, run: Run, result: Result | None, tally: Tally) -> None:
        facts: dict[str, Any] = {
            "event": "run_begun" if result is None else "run_ended",
            "time": time.time(),
            "position": run.position,
            "repetition": run.repetition,
            "cell": run.cell.spec.cell,
            "parameters": run.cell.shown,
        }
        if result is not None:
            facts |= {"outcome": result.outcome, "error": result.error, "figures": result.figures}
        self._write(facts | {"left": tally.left})

    def end(self, tally: Tally) -> None:
        self._write({"event": "finished", "time": time.time()} | msgspec.structs.asdict(tally))

    def _write(self, facts: dict[str, Any]) -> None:
        self._stream.write(msgspec.json.encode(facts, enc_hook=str).decode() + "\n")
        self._stream.flush()


def choose_progress(as_json: bool, *, quiet: bool) -> SweepProgress:
    """JSON if asked for, else nothing if ``quiet``, else a bar on a terminal, else lines."""
    if as_json:
        return _Json(sys.stdout)
    if quiet:
        return SweepProgress()
    console = Console()
    return _Bar(console) if console.is_terminal else _Lines(sys.stdout)
