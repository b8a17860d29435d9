"""How long each phase takes: stacked bars, one for each cell."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from vmferry.experiments.report.bootstrap import SPREAD
from vmferry.experiments.report.data import Group, Overview
from vmferry.experiments.report.plots.style import (
    COLOURS,
    PHASE_COLOURS,
    PHASE_NAMES,
    figure,
    svg_of,
)

__all__ = ["phase_names", "phases_plot"]


def phase_names(groups: Iterable[Group]) -> list[str]:
    """The names of all phases of these cells, in the order in which they come in each run."""
    names: list[str] = []
    for group in groups:
        for phases in group.phases:
            place = len(names)
            for name in reversed(dict.fromkeys(one.name for one in phases)):
                if name not in names:
                    names.insert(place, name)
                place = names.index(name)
    return names


def phases_plot(overview: Overview) -> str:
    """Medians of the phases' lengths, and with a line how the whole is spread."""
    groups = [group for group in overview.groups if group.runs]
    labels = [overview.label(group) for group in groups]
    with figure(1.0 + 0.28 * len(groups)) as drawn:
        axes = drawn.subplots()
        left = [0.0] * len(groups)
        for number, name in enumerate(phase_names(groups)):
            lengths = [
                statistics.median(values) if (values := group.values(f"phase:{name}")) else 0.0
                for group in groups
            ]
            colour = PHASE_COLOURS.get(name, COLOURS[number % len(COLOURS)])
            label = PHASE_NAMES.get(name, name)
            axes.barh(labels, lengths, left=left, color=colour, label=label, height=0.72)
            left = [sum(pair) for pair in zip(left, lengths, strict=True)]
        for place, group in enumerate(groups):
            whole = group.estimate("total")
            if whole is not None and whole.low is not None and whole.high is not None:
                axes.plot([whole.low, whole.high], [place, place], color="black", lw=1.0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"seconds (medians; line: total, {SPREAD})")
        drawn.legend(loc="outside upper left", ncols=5)
        return svg_of(drawn)
