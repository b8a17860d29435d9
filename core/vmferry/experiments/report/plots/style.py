"""What all plots have in common: size, colours, and the way to SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmferry.experiments.extras import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "PHASE_COLOURS", "PHASE_NAMES", "figure", "marker", "svg_of"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""Okabe and Ito's, which people see apart whatever colours they see."""
_MARKERS = "osD^vPX"
PHASE_COLOURS = {
    "handshake": "#999999",
    "push-disk": "#0072b2",
    "push-memory": "#56b4e9",
    "stop": "#d55e00",
    "copy": "#e69f00",
    "mirror": "#0072b2",
    "sync": "#0072b2",
    "promote": "#cc79a7",
    "migrate": "#56b4e9",
    "start": "#999999",
    "part": "#4d4d4d",
    "pull": "#009e73",
}
PHASE_NAMES = {
    "push-disk": "PUSH, disk",
    "push-memory": "PUSH, memory",
    "stop": "STOP",
    "pull": "PULL",
}
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "vmferry",
    "figure.constrained_layout.use": True,
}
_WIDTH = 7.2
"""Inches: the text width of a page."""


def marker(number: int) -> str:
    """The marker of line ``number``."""
    return _MARKERS[number % len(_MARKERS)]


@contextmanager
def figure(height: float) -> Iterator[Figure]:
    """A figure that is drawn in the common style while inside."""
    matplotlib: Any = need("matplotlib", "experiments", "a plot")
    figures: Any = need("matplotlib.figure", "experiments", "a plot")
    with matplotlib.rc_context(_STYLE):
        yield figures.Figure(figsize=(_WIDTH, height), layout="constrained")


def svg_of(drawn: Figure) -> str:
    """The figure as an ``svg`` element that can stand in a page; the same again each time."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|$^', r"\1", body, count=1)
