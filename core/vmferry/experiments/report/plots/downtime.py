"""How the downtime is distributed: every run a dot, a box for each cell."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from vmferry.experiments.report.data import Group, Overview
from vmferry.experiments.report.plots.style import COLOURS, figure, svg_of

__all__ = ["downtime_plot"]

_DOWNTIMES = {
    "downtime_guest": "the guest saw",
    "downtime_source": "the source saw",
    "downtime_destination": "the destination saw",
}
_WIDE = 20
"""How many times the shortest the longest is before the scale is logarithmic."""


def downtime_plot(overview: Overview) -> str:
    """A panel for each side that measured it; an empty text if none did."""
    groups = [group for group in overview.groups if any(map(group.values, _DOWNTIMES))]
    names = [name for name in _DOWNTIMES if any(group.values(name) for group in groups)]
    if not groups:
        return ""
    with figure(0.9 + 0.28 * len(groups)) as drawn:
        panels = drawn.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            _panel(panel, [_milliseconds(group, name) for group in groups])
            panel.set_xlabel(f"ms {_DOWNTIMES[name]}")
        panels[0].set_yticks(range(len(groups)), [overview.label(group) for group in groups])
        panels[0].invert_yaxis()
        return svg_of(drawn)


def _milliseconds(group: Group, name: str) -> list[float]:
    return [1000 * value for value in group.values(name)]


def _panel(panel: Any, values: Sequence[Sequence[float]]) -> None:
    chance = random.Random(1)  # noqa: S311
    grey = {"color": "#888888"}
    panel.boxplot(
        values,
        orientation="horizontal",
        positions=range(len(values)),
        widths=0.6,
        showfliers=False,
        medianprops={"color": COLOURS[1], "linewidth": 1.6},
        boxprops=grey,
        whiskerprops=grey,
        capprops=grey,
    )
    for place, one in enumerate(values):
        heights = [place + chance.uniform(-0.18, 0.18) for _ in one]
        panel.scatter(one, heights, s=9, color=COLOURS[0], alpha=0.75, linewidths=0, zorder=3)
    panel.grid(visible=False, axis="y")
    every = [value for one in values for value in one if value > 0]
    if every and max(every) > _WIDE * min(every):
        panel.set_xscale("log")
    else:
        panel.set_xlim(left=0)
