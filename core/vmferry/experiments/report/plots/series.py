"""One run over time, its phases marked: what is made equal, what is left, what the guest feels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vmferry.experiments.extras import need
from vmferry.experiments.report.derived import Curve, curves
from vmferry.experiments.report.plots.style import (
    COLOURS,
    PHASE_COLOURS,
    PHASE_NAMES,
    figure,
    svg_of,
)
from vmferry.experiments.results import PhaseTime, Series

__all__ = ["series_plot"]

_BEFORE = 0.3
"""How much of the time before is shown, as a share of the run's."""


class _Panel(NamedTuple):
    name: str
    heading: str


_PANELS = (
    _Panel("moved", "made equal, MiB/s"),
    _Panel("pending", "left, MiB"),
    _Panel("requests", "requests/s"),
    _Panel("latency", "latency, ms"),
)


def series_plot(series: Mapping[str, Series], phases: Sequence[PhaseTime]) -> str:
    """The run whose series and source's phases these are; an empty text if there are none."""
    drawn_curves = curves(series)
    panels = [panel for panel in _PANELS if panel.name in drawn_curves]
    if not panels or not phases:
        return ""
    with figure(0.6 + 1.05 * len(panels)) as drawn:
        grid = drawn.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, shown in zip(grid, panels, strict=True):
            _draw(panel, drawn_curves[shown.name], shown)
            for one in phases:
                _shade(panel, one)
        _frame(grid[-1], phases)
        drawn.legend(handles=_legend(phases), loc="outside upper left", ncols=5)
        grid[-1].set_xlabel("seconds since the migration began")
        drawn.align_ylabels(list(grid))
        return svg_of(drawn)


def _draw(panel: Any, curve: Curve, shown: _Panel) -> None:
    panel.plot(curve.times, curve.values, color=COLOURS[6], linewidth=1.1)
    panel.set_ylabel(shown.heading, fontsize=8)
    panel.set_ylim(bottom=0)
    panel.margins(x=0.01)


def _shade(panel: Any, phase: PhaseTime) -> None:
    colour = PHASE_COLOURS.get(phase.name, "#cccccc")
    alpha = 0.45 if phase.name == "stop" else 0.14
    panel.axvspan(phase.begin, phase.begin + phase.seconds, color=colour, alpha=alpha, linewidth=0)


def _frame(panel: Any, phases: Sequence[PhaseTime]) -> None:
    """Leave out most of a long time before."""
    end = max(one.begin + one.seconds for one in phases)
    left, _ = panel.get_xlim()
    panel.set_xlim(left=max(left, -_BEFORE * end))


def _legend(phases: Sequence[PhaseTime]) -> list[Any]:
    patches: Any = need("matplotlib.patches", "experiments", "a plot")
    return [
        patches.Patch(
            color=PHASE_COLOURS.get(name, "#cccccc"), alpha=0.5, label=PHASE_NAMES.get(name, name)
        )
        for name in dict.fromkeys(one.name for one in phases)
    ]
