"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmferry import __version__
from vmferry.experiments.backends import backend
from vmferry.experiments.extras import need
from vmferry.experiments.parameters import show_value
from vmferry.experiments.records.database import Database
from vmferry.experiments.records.reading import RunRow, load_rounds, load_series
from vmferry.experiments.report import plots
from vmferry.experiments.report.bootstrap import SPREAD
from vmferry.experiments.report.data import Group, Overview
from vmferry.experiments.report.derived import AFTER, BEFORE, Fare, fares, median_of
from vmferry.experiments.report.plots.axes import numeric_axes
from vmferry.experiments.report.plots.phases import phase_names
from vmferry.experiments.report.plots.style import PHASE_NAMES
from vmferry.experiments.report.tables import (
    COMPARED,
    Comparison,
    common_values,
    comparison_rows,
    show_estimate,
    shown_columns,
)
from vmferry.units import format_duration, format_size

__all__ = ["render_page"]

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_MOST_SERIES = 12


def render_page(database: Database, overview: Overview, name: str) -> str:
    """The page; the same runs give the same page, but for its date.

    Raises:
        InputError: jinja2 or matplotlib is not installed.

    """
    jinja2 = need("jinja2", "experiments", "the HTML report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["svg"] = jinja2.utils.markupsafe.Markup
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text: str = template.render(_facts(database, overview, name))
    return text


def _facts(database: Database, overview: Overview, name: str) -> dict[str, Any]:
    runs = [run for group in overview.groups for run in group.runs]
    definition = _definition(database, name)
    return {
        "name": name,
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "spread": SPREAD,
        "description": definition.get("description", ""),
        "seed": definition.get("seed", "-"),
        "definition": definition.get("definition", ""),
        "common": common_values(overview),
        "counts": _counts(overview),
        "kinds": _kinds(overview),
        "hosts": _hosts(runs),
        "versions": _distinct(runs, "versions"),
        "notes": sorted({note for run in runs for note in run.notes}),
        "summary": _summary(overview),
        "comparison": _comparison(overview),
        "phases": plots.phases_plot(overview) if runs else "",
        "downtimes": plots.downtime_plot(overview),
        "axes": [
            (axis.replace("_", " "), plots.axis_plot(overview, axis))
            for axis in numeric_axes(overview)
        ],
        "series": list(_series(database, overview)),
        "fares": _fares(database, overview),
        "rounds": _rounds(database, overview),
        "failures": [
            (overview.label(group), run.repetition, run.error or "")
            for group in overview.groups
            for run in group.failed
        ],
    }


def _definition(database: Database, name: str) -> dict[str, Any]:
    row = database.connection.execute(
        "SELECT description, seed, definition FROM experiment WHERE name = ? "
        "ORDER BY id DESC LIMIT 1",
        (name,),
    ).fetchone()
    return dict(zip(("description", "seed", "definition"), row, strict=True)) if row else {}


def _counts(overview: Overview) -> dict[str, int]:
    return {
        "cells": len(overview.groups),
        "done": sum(len(group.runs) for group in overview.groups),
        "failed": sum(len(group.failed) for group in overview.groups),
        "attempts": sum(group.attempts for group in overview.groups),
    }


def _kinds(overview: Overview) -> list[tuple[str, str, bool]]:
    """The hypervisors: name, what they are, and whether a guest really moved."""
    names = dict.fromkeys(group.parameters["hypervisor"] for group in overview.groups)
    found = [backend(name) for name in names]
    return [(one.name, one.summary, one.real) for one in found]


def _hosts(runs: Sequence[RunRow]) -> list[dict[str, str]]:
    """Each machine once; the load, which differs, from its least to its highest."""
    loads: dict[str, list[float]] = {}
    shown: dict[str, dict[str, str]] = {}
    for run in runs:
        facts = {key: value for key, value in run.host.items() if key != "load"}
        key = repr(sorted(facts.items()))
        if "memory" in facts:
            facts["memory"] = format_size(facts["memory"])
        shown[key] = {name: str(value) for name, value in facts.items() if value != ""}
        loads.setdefault(key, []).append(run.host.get("load", 0.0))
    return [
        facts | {"load at the start of runs": f"{min(loads[key])} to {max(loads[key])}"}
        for key, facts in shown.items()
        if facts
    ]


def _distinct(runs: Sequence[RunRow], name: str) -> list[dict[str, str]]:
    found = {repr(sorted(getattr(run, name).items())): getattr(run, name) for run in runs}
    return [facts for facts in found.values() if facts]


def _summary(overview: Overview) -> dict[str, Any]:
    columns = shown_columns(overview)
    return {
        "axes": [axis.replace("_", " ") for axis in overview.varied],
        "headings": [column.heading for column in columns],
        "rows": [
            {
                "values": [show_value(axis, group.parameters[axis]) for axis in overview.varied],
                "runs": len(group.runs),
                "failed": len(group.failed),
                "figures": [
                    show_estimate(group.estimate(column.name), column.show) for column in columns
                ],
            }
            for group in overview.groups
        ],
    }


def _comparison(overview: Overview) -> dict[str, Any]:
    rows: list[Comparison] = list(comparison_rows(overview))
    return {"headings": [name.replace("_", " ") for name in COMPARED], "rows": rows}


def _typical(group: Group) -> int | None:
    """The run whose total is nearest to the median."""
    middle = group.estimate("total")
    if middle is None:
        return 0 if group.runs else None
    totals = [run.figures.get("total") or 0.0 for run in group.runs]
    return min(range(len(totals)), key=lambda place: abs(totals[place] - middle.value))


def _series(database: Database, overview: Overview) -> Iterator[tuple[str, int, str]]:
    """Of each cell the run nearest to the median: label, repetition, plot."""
    drawn = 0
    for group in overview.groups:
        place = _typical(group)
        if place is None or drawn == _MOST_SERIES:
            continue
        run = group.runs[place]
        svg = plots.series_plot(load_series(database, run.id), group.phases[place])
        if svg:
            drawn += 1
            yield overview.label(group), run.repetition, svg


def _fares(database: Database, overview: Overview) -> dict[str, Any]:
    """How the guest fared in each part of a run: medians over the runs of a cell."""
    fared: list[tuple[Group, list[dict[str, Fare]]]] = []
    for group in overview.groups:
        found = [
            fares(load_series(database, run.id), phases)
            for run, phases in zip(group.runs, group.phases, strict=True)
        ]
        if any(found):
            fared.append((group, found))
    parts = [BEFORE, *phase_names(group for group, _ in fared), AFTER]
    return {
        "parts": [PHASE_NAMES.get(part, part) for part in parts],
        "rows": [
            (overview.label(group), [_pace(found, part) for part in parts])
            for group, found in fared
        ],
    }


def _pace(found: Sequence[Mapping[str, Fare]], part: str) -> str:
    """``80/s, 2.0 ms``; ``-`` if it cannot be told, nothing if no run has this part."""
    there = [one[part] for one in found if part in one]
    requests = median_of([one.requests for one in there])
    latency = median_of([one.latency for one in there])
    if requests is None:
        return "-" if there else ""
    return f"{requests:.0f}/s" + ("" if latency is None else f", {format_duration(latency)}")


def _rounds(database: Database, overview: Overview) -> list[tuple[str, list[list[str]]]]:
    """The rounds of PUSH of each cell's typical run."""
    found = []
    for group in overview.groups:
        place = _typical(group)
        if place is None:
            continue
        rounds = load_rounds(database, group.runs[place].id)
        rows = [
            [
                f"{one.number}{' + memory' if one.memory else ''}",
                format_size(one.scanned),
                format_size(one.sent),
                format_duration(one.seconds),
                format_size(one.dirty),
                f"{format_size(one.dirty / one.seconds)}/s" if one.seconds else "-",
            ]
            for one in rounds
        ]
        if rows:
            found.append((overview.label(group), rows))
    return found[:_MOST_SERIES]
