"""The report for people in front of a terminal."""

from __future__ import annotations

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vmferry.experiments.parameters import show_value
from vmferry.experiments.report.bootstrap import SPREAD
from vmferry.experiments.report.data import Group, Overview
from vmferry.experiments.report.tables import (
    COMPARED,
    common_values,
    comparison_rows,
    show_estimate,
    shown_columns,
)

__all__ = ["overview_table", "terminal_report"]


def overview_table(overview: Overview) -> Table:
    """A row for each cell: its parameters that vary, and its medians."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for axis in overview.varied:
        table.add_column(axis.replace("_", " "))
    table.add_column("runs", justify="right")
    columns = shown_columns(overview)
    for column in columns:
        table.add_column(column.heading, justify="right")
    for group in overview.groups:
        table.add_row(
            *(show_value(axis, group.parameters[axis]) for axis in overview.varied),
            _runs(group),
            *(show_estimate(group.estimate(column.name), column.show) for column in columns),
        )
    return table


def _runs(group: Group) -> str:
    failed = f" + {len(group.failed)} failed" if group.failed else ""
    return f"{len(group.runs)}{failed}"


def _comparison(overview: Overview) -> Table | None:
    rows = list(comparison_rows(overview))
    if not rows:
        return None
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("baseline", "vmferry", *COMPARED):
        table.add_column(heading.replace("_", " "))
    for base, group, ratios in rows:
        table.add_row(base, group, *ratios)
    return table


def terminal_report(overview: Overview, name: str) -> RenderableType:
    """Tables of medians, comparisons with baselines, and failures."""
    parts: list[RenderableType] = [
        Text(f"experiment {name}", style="bold"),
        *(Text(line, style="dim") for line in common_values(overview)),
        Text(f"medians ({SPREAD})", style="dim"),
        "",
        overview_table(overview),
    ]
    comparison = _comparison(overview)
    if comparison is not None:
        parts += ["", Text("times the baseline's median", style="bold"), comparison]
    failures = [
        Text(f"  {overview.label(group)}, repetition {run.repetition}: {run.error}", style="red")
        for group in overview.groups
        for run in group.failed
    ]
    if failures:
        parts += ["", Text("failed", style="bold red"), *failures]
    return Lines(*parts)
