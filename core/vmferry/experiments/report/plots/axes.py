"""How figures depend on an axis of the matrix that is a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vmferry.experiments.parameters import show_value
from vmferry.experiments.report.data import Group, Overview
from vmferry.experiments.report.plots.style import COLOURS, figure, marker, svg_of
from vmferry.units import KIB, MIB

__all__ = ["axis_plot", "numeric_axes"]

_NUMERIC = ("block_size", "disk_size", "memory", "bandwidth", "latency", "loss", "limit")
_MOST_LINES = 10


class _Shown(NamedTuple):
    name: str
    heading: str
    scale: float


_FIGURES = (
    _Shown("total", "total, s", 1),
    _Shown("downtime_guest", "downtime (guest), ms", 1e3),
    _Shown("phase:pull", "PULL, s", 1),
    _Shown("pending", "dirty at the switch, MiB", 1 / MIB),
    _Shown("bitmap_bytes", "bitmaps on the link, KiB", 1 / KIB),
    _Shown("sent", "sent, MiB", 1 / MIB),
)


def numeric_axes(overview: Overview) -> list[str]:
    """The numeric axes that have at least three values."""
    return [axis for axis in _NUMERIC if len(_values(overview.groups, axis)) > 2]


def _values(groups: list[Group], axis: str) -> list[Any]:
    found = {group.parameters.get(axis) for group in groups if group.runs} - {None}
    return sorted(found)


def axis_plot(overview: Overview, axis: str) -> str:
    """A panel for each figure, a line for each combination of the other axes."""
    places = {value: place for place, value in enumerate(_values(overview.groups, axis))}
    lines = _lines(overview, axis)
    panels = [one for one in _FIGURES if any(_has(group, one.name) for group in overview.groups)]
    rows = -(-len(panels) // 2)
    with figure(0.8 + 1.9 * rows) as drawn:
        grid = drawn.subplots(rows, 2, squeeze=False)
        for panel, shown in zip(grid.flat, panels, strict=False):
            for number, (label, groups) in enumerate(lines.items()):
                _line(panel, shown, groups, lambda one: places[one.parameters[axis]], number, label)
            names = [show_value(axis, value) for value in places]
            panel.set_xticks(list(places.values()), names, rotation=30, ha="right")
            panel.set_title(shown.heading, fontsize=9, loc="left")
            panel.set_ylim(bottom=0)
        for panel in list(grid.flat)[len(panels) :]:
            panel.set_axis_off()
        if len(lines) > 1:
            handles, labels = grid.flat[0].get_legend_handles_labels()
            drawn.legend(handles, labels, loc="outside upper left", ncols=4)
        drawn.supxlabel(axis.replace("_", " "), fontsize=9)
        return svg_of(drawn)


def _has(group: Group, name: str) -> bool:
    return any(group.values(name))


def _lines(overview: Overview, axis: str) -> dict[str, list[Group]]:
    others = [name for name in overview.varied if name != axis]
    lines: dict[str, list[Group]] = {}
    for group in overview.groups:
        if group.runs and group.parameters.get(axis) is not None:
            lines.setdefault(overview.label(group, others), []).append(group)
    return dict(list(lines.items())[:_MOST_LINES])


def _line(
    panel: Any,
    shown: _Shown,
    groups: list[Group],
    place: Callable[[Group], int],
    number: int,
    label: str,
) -> None:
    points = [
        (place(group), found)
        for group in groups
        if (found := group.estimate(shown.name)) is not None
    ]
    points.sort(key=lambda point: point[0])
    values = [found.value * shown.scale for _, found in points]
    below = [_reach(found.value, found.low) * shown.scale for _, found in points]
    above = [_reach(found.value, found.high) * shown.scale for _, found in points]
    panel.errorbar(
        [where for where, _ in points],
        values,
        yerr=[below, above],
        color=COLOURS[number % len(COLOURS)],
        marker=marker(number),
        markersize=4,
        linewidth=1.3,
        elinewidth=0.8,
        capsize=2,
        label=label,
    )


def _reach(value: float, end: float | None) -> float:
    """How far the interval or range reaches to one side."""
    return 0.0 if end is None else abs(value - end)
