"""A dry run: what would be run, in which order, and about how long it would take."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import msgspec

from vmferry.experiments.backends import backend
from vmferry.experiments.matrix import Cell, Run
from vmferry.experiments.records.database import Database

__all__ = ["Estimate", "estimate"]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that runs will take, and of how many that is known from runs that were done."""

    seconds: float
    known: int
    by_cell: dict[str, float]


def estimate(cells: list[Cell], runs: list[Run], database: Database | None) -> Estimate:
    """How long ``runs`` take: the median of the cell's runs that were done, else reckoned."""
    seen = _durations(database) if database is not None else {}
    by_cell = {cell.spec.cell: _seconds(cell, seen) for cell in cells}
    return Estimate(
        seconds=sum(by_cell[run.cell.spec.cell] for run in runs),
        known=sum(run.cell.spec.cell in seen for run in runs),
        by_cell=by_cell,
    )


def _seconds(cell: Cell, seen: Mapping[str, float]) -> float:
    reckoned = backend(cell.spec.parameters.hypervisor).estimate(cell.spec)
    return seen.get(cell.spec.cell, reckoned)


def _durations(database: Database) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for cell, seconds in database.connection.execute(
        "SELECT cell, ended - started FROM run WHERE outcome = 'done'"
    ):
        found.setdefault(cell, []).append(seconds)
    return {cell: statistics.median(times) for cell, times in found.items()}
