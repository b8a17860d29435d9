"""Events on a terminal: a bar for each disk and for memory, the rounds, and a summary."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from vmferry.api import Phase, Progress, RoundReport, Summary
from vmferry.cli.display import words
from vmferry.cli.display.base import Display

__all__ = ["RichDisplay"]

_ROUNDS_SHOWN = 8
_STYLES = {"done": "bold green", "failed": "bold red", "interrupted": "bold yellow"}


class RichDisplay(Display):
    """Keeps a live area at the bottom of the terminal; events and summaries scroll above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phases: dict[str, str] = {}
        self._rounds: list[RoundReport] = []
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._bars = _bars(console)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> RichDisplay:
        self._live.start()
        return self

    def close(self) -> None:
        """Draw the last state and leave it standing; the cursor is visible again."""
        self._live.stop()

    def phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Show the phase above the bars, which begin anew."""
        self._phases[job] = words.PHASES[phase]
        self._drop_bars(job)

    def round_finished(self, job: str, report: RoundReport) -> None:
        """Add a row to the table of rounds."""
        self._rounds.append(report)

    def progress(self, job: str, progress: Progress) -> None:
        """Move the bar of one disk or of memory."""
        key = (job, progress.what)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task("", amount="", rate="", left="", note="")
        number = f", round {progress.round}" if progress.round >= 0 else ""
        self._bars.update(
            self._tasks[key],
            description=escape(f"{progress.what}{number}"),
            total=max(1, progress.total),
            completed=progress.done if progress.total > 0 else 1,
            amount=words.amount(progress),
            rate=words.rate(progress),
            left=words.time_left(progress),
            note=escape(progress.note),
        )

    def event(self, job: str, name: str, facts: dict[str, Any]) -> None:
        """Let the event scroll by above the bars."""
        self._console.print(Text(words.event_line(name, facts), style="dim"))

    def finished(self, summary: Summary) -> None:
        """Replace the job's bars by its outcome and figures."""
        self._drop_bars(summary.job)
        self._phases.pop(summary.job, None)
        self._rounds.clear()
        self._live.refresh()
        self._console.print(_summary(summary))

    def _drop_bars(self, job: str) -> None:
        for key in [key for key in self._tasks if key[0] == job]:
            self._bars.remove_task(self._tasks.pop(key))

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._rounds:
            parts.append(_round_table(self._rounds))
        parts += [Text(text, style="bold") for text in self._phases.values()]
        return Group(*parts, self._bars.get_renderable())


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
        console=console,
        auto_refresh=False,
    )


def _round_table(rounds: list[RoundReport]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in words.ROUND_COLUMNS:
        table.add_column(heading, justify="left" if heading == "round" else "right")
    for report in rounds[-_ROUNDS_SHOWN:]:
        table.add_row(*words.round_cells(report))
    return table


def _summary(summary: Summary) -> RenderableType:
    parts: list[RenderableType] = []
    if summary.rounds:
        parts.append(_round_table(list(summary.rounds)))
    parts.append(Text(words.outcome_line(summary), style=_STYLES.get(summary.outcome, "bold")))
    figures = Table.grid(padding=(0, 2))
    for label, text in words.summary_rows(summary):
        figures.add_row(f"  {label}", Text(text))
    return Group(*parts, figures)
