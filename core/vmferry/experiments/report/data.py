"""The runs of an experiment as a report wants them: by cell, one run for each repetition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from vmferry.experiments.backends import VMFERRY
from vmferry.experiments.parameters import AXES, show_value
from vmferry.experiments.records.database import Database
from vmferry.experiments.records.reading import RunRow, load_phases, load_runs
from vmferry.experiments.report.bootstrap import Estimate, median
from vmferry.experiments.results import PhaseTime
from vmferry.units import format_duration, format_size

__all__ = ["COLUMNS", "Column", "Group", "Overview", "load_overview"]

_ALIKE = ("load", "before", "after", "lab", "model", "measure")
"""What a baseline's runs and vmferry's have in common besides axes, or are not compared."""


class Group(msgspec.Struct, kw_only=True):
    """A cell and its runs.

    Attributes:
        cell: its identifier.
        parameters: its value on each axis, ``None`` where that makes no difference.
        spec: what its runs were done with, as it is stored.
        runs: those that were done, one for each repetition.
        failed: those that failed and were not done at another attempt.
        attempts: all there were.
        phases: of each of ``runs`` the source's phases.

    """

    cell: str
    parameters: dict[str, Any]
    spec: dict[str, Any] = {}
    runs: list[RunRow] = []
    failed: list[RunRow] = []
    attempts: int = 0
    phases: list[list[PhaseTime]] = []

    def values(self, name: str) -> list[float]:
        """A figure of all runs that have it; ``phase:NAME`` is the length of a phase."""
        if name.startswith("phase:"):
            lengths = (
                [one.seconds for one in phases if name == f"phase:{one.name}"]
                for phases in self.phases
            )
            return [sum(found) for found in lengths if found]
        found = (run.figures.get(name) for run in self.runs)
        return [value for value in found if value is not None]

    def estimate(self, name: str) -> Estimate | None:
        """The median of a figure over the runs."""
        return median(self.values(name))


class Overview(msgspec.Struct, kw_only=True):
    """All cells of an experiment, and which axes they differ in.

    Attributes:
        groups: in order of their parameters.
        varied: the axes on which not all have one value.
        fixed: the value of each other axis that makes a difference.

    """

    groups: list[Group]
    varied: list[str]
    fixed: dict[str, Any]

    def label(self, group: Group, axes: Iterable[str] | None = None) -> str:
        """What a cell is called: its values on the axes that vary, or on these."""
        chosen = self.varied if axes is None else axes
        shown = [
            show_value(axis, group.parameters[axis])
            for axis in chosen
            if group.parameters.get(axis) is not None
        ]
        return ", ".join(shown) or "all runs"

    def common(self) -> dict[str, dict[str, Any]]:
        """``fixed``, by which runs have it: all, vmferry's, or those to which it matters."""
        found: dict[str, dict[str, Any]] = {}
        for axis, value in self.fixed.items():
            found.setdefault(self._having(axis), {})[axis] = value
        return found

    def _having(self, axis: str) -> str:
        having: dict[bool, set[str]] = {True: set(), False: set()}
        for group in self.groups:
            having[group.parameters.get(axis) is not None].add(group.parameters["method"])
        if not having[False]:
            return "all runs"
        ours = VMFERRY in having[True] - having[False]
        return "all runs of vmferry" if ours else "the runs to which it matters"

    def pairs(self) -> list[tuple[Group, list[Group]]]:
        """Each baseline's cell with the cells of vmferry that it is to be compared with."""
        ours = [group for group in self.groups if group.parameters["method"] == VMFERRY]
        return [
            (base, [group for group in ours if _comparable(base, group)])
            for base in self.groups
            if base.parameters["method"] != VMFERRY
        ]


def _comparable(base: Group, group: Group) -> bool:
    return all(
        value is None or group.parameters[axis] in (None, value)
        for axis, value in base.parameters.items()
        if axis != "method"
    ) and _circumstances(base, base) == _circumstances(base, group)


def _circumstances(base: Group, group: Group) -> list[Any]:
    """What a group's spec says beside the axes, of that which makes a difference to ``base``."""
    spec = group.spec
    policy = None if base.parameters.get("policy") is None else spec.get("policy")
    trial = spec.get("options", {}).get("trial")
    return [policy, trial or None, *(spec.get(name) for name in _ALIKE)]


class Column(NamedTuple):
    """A figure as a column: heading, name in ``Group.estimate``, and how it is written."""

    heading: str
    name: str
    show: Callable[[float], str]


def _count(value: float) -> str:
    return f"{value:.0f}"


COLUMNS: Sequence[Column] = (
    Column("total", "total", format_duration),
    Column("downtime (guest)", "downtime_guest", format_duration),
    Column("downtime (source)", "downtime_source", format_duration),
    Column("downtime (destination)", "downtime_destination", format_duration),
    Column("PULL", "phase:pull", format_duration),
    Column("sent", "sent", format_size),
    Column("dirty at switch", "pending", format_size),
    Column("bitmaps", "bitmap_bytes", format_size),
    Column("on demand", "on_demand", _count),
)


def load_overview(database: Database, cells: Iterable[str] | None = None) -> Overview:
    """Everything about the cells with these identifiers, or about all."""
    groups: dict[str, Group] = {}
    wanted = None if cells is None else set(cells)
    repetitions: dict[tuple[str, int], list[RunRow]] = {}
    for run in load_runs(database):
        if wanted is not None and run.cell not in wanted:
            continue
        new = Group(cell=run.cell, parameters=run.parameters, spec=run.spec)
        groups.setdefault(run.cell, new).attempts += 1
        repetitions.setdefault((run.cell, run.repetition), []).append(run)
    for (cell, _), attempts in sorted(repetitions.items()):
        _settle(groups[cell], attempts)
    for group in groups.values():
        group.phases = [
            [one for one in load_phases(database, run.id) if one.role == "source"]
            for run in group.runs
        ]
    return _overview(sorted(groups.values(), key=_sort_key))


def _settle(group: Group, attempts: list[RunRow]) -> None:
    """Take the attempt that was done; a failure counts only if there is none."""
    for outcome, runs in (("done", group.runs), ("failed", group.failed)):
        found = [run for run in attempts if run.outcome == outcome]
        if found:
            runs.append(found[0])
            return


def _sort_key(group: Group) -> list[tuple[bool, Any]]:
    values = [group.parameters.get(axis) for axis in AXES]
    method = group.parameters.get("method") != VMFERRY
    return [(method, ""), *((value is None, value if value is not None else 0) for value in values)]


def _overview(groups: list[Group]) -> Overview:
    seen: dict[str, set[Any]] = {
        axis: {group.parameters.get(axis) for group in groups} for axis in AXES
    }
    varied = [axis for axis, values in seen.items() if len(values - {None}) > 1]
    fixed = {
        axis: next(iter(values - {None}))
        for axis, values in seen.items()
        if axis not in varied and values - {None}
    }
    return Overview(groups=groups, varied=varied, fixed=fixed)
