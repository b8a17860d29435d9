"""What both the terminal and the page show in their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from vmferry.experiments.parameters import show_value
from vmferry.experiments.report.bootstrap import Estimate, ratio
from vmferry.experiments.report.data import COLUMNS, Column, Overview

__all__ = [
    "COMPARED",
    "Comparison",
    "common_values",
    "comparison_rows",
    "show_estimate",
    "shown_columns",
]

COMPARED = ("total", "downtime_guest", "downtime_source", "sent")
"""Figures that are compared with a baseline's."""


class Comparison(NamedTuple):
    """A baseline's cell, one of vmferry's, and the ratios of their medians as text."""

    base: str
    ours: str
    ratios: list[str]


def show_estimate(estimate: Estimate | None, show: Callable[[float], str]) -> str:
    """``1.2 s (95%: 1.1 s to 1.4 s)``, or ``range of 5`` for the level; ``-`` if there is none."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return show(estimate.value)
    ends = f"{show(estimate.low)} to {show(estimate.high)}"
    return f"{show(estimate.value)} ({estimate.spread}: {ends})"


def common_values(overview: Overview) -> list[str]:
    """What runs have in common, a line for each kind of them: ``in all runs: memory 64 MiB``."""
    return [
        f"in {whose}: "
        + ", ".join(
            f"{axis.replace('_', ' ')} {show_value(axis, value)}" for axis, value in values.items()
        )
        for whose, values in overview.common().items()
    ]


def shown_columns(overview: Overview) -> list[Column]:
    """The columns that at least one cell has something for."""
    return [
        column for column in COLUMNS if any(group.values(column.name) for group in overview.groups)
    ]


def comparison_rows(overview: Overview) -> Iterator[Comparison]:
    """Each baseline's cell with each of vmferry's that it is to be compared with."""
    for base, ours in overview.pairs():
        for group in ours:
            ratios = [ratio(group.values(name), base.values(name)) for name in COMPARED]
            shown = [show_estimate(one, lambda value: f"{value:.2f}") for one in ratios]
            yield Comparison(overview.label(base), overview.label(group), shown)
