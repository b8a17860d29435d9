"""Reading runs for reports and exports."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from vmferry.experiments.records.database import Database
from vmferry.experiments.results import FIGURES, PhaseTime, Round, Series

__all__ = ["RunRow", "load_phases", "load_rounds", "load_runs", "load_series"]

_COLUMNS = (
    *("id", "cell", "repetition", "attempt", "position", "seed", "started", "ended", "begun"),
    *("outcome", "error", "worker"),
)
_JSON = ("parameters", "notes", "host", "versions", "spec")


class RunRow(msgspec.Struct, kw_only=True):
    """One row of ``run``; see ``records.schema`` and ``results.FIGURES``."""

    id: int
    cell: str
    repetition: int
    attempt: int
    position: int
    seed: int
    started: float
    ended: float | None = None
    begun: float | None = None
    outcome: str | None = None
    error: str | None = None
    worker: str | None = None
    parameters: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    notes: list[str] = []
    host: dict[str, Any] = {}
    versions: dict[str, str] = {}
    figures: dict[str, float | None] = {}


def load_runs(database: Database) -> list[RunRow]:
    """Every attempt, in the order in which they were begun."""
    columns = [*_COLUMNS, *_JSON, *FIGURES]
    rows = database.connection.execute(
        f"SELECT {', '.join(columns)} FROM run ORDER BY id"  # noqa: S608 # our own names
    )
    return [_row(dict(zip(columns, row, strict=True))) for row in rows]


def _row(values: dict[str, Any]) -> RunRow:
    facts = {name: values[name] for name in _COLUMNS}
    decoded = {name: json.loads(values[name]) for name in _JSON if values[name]}
    return RunRow(**facts, **decoded, figures={name: values[name] for name in FIGURES})


def load_phases(database: Database, run: int) -> list[PhaseTime]:
    """The phases of a run, of both sides."""
    rows = database.connection.execute(
        "SELECT role, name, begin, seconds FROM phase WHERE run = ? ORDER BY role, number", (run,)
    )
    names = ("role", "name", "begin", "seconds")
    return [PhaseTime(**dict(zip(names, row, strict=True))) for row in rows]


def load_rounds(database: Database, run: int) -> list[Round]:
    """The rounds of PUSH of a run."""
    names = ("number", "memory", "scanned", "sent", "zeroes", "seconds", "dirty", "ended")
    rows = database.connection.execute(
        f"SELECT {', '.join(names)} FROM round WHERE run = ? ORDER BY number",  # noqa: S608
        (run,),
    )
    found = []
    for row in rows:
        facts = dict(zip(names, row, strict=True))
        found.append(Round(end=facts.pop("ended"), memory=bool(facts.pop("memory")), **facts))
    return found


def load_series(database: Database, run: int) -> dict[str, Series]:
    """The time series of a run, by name."""
    found: dict[str, Series] = {}
    for name, when, value in database.connection.execute(
        "SELECT series, time, value FROM sample WHERE run = ? ORDER BY series, number", (run,)
    ):
        found.setdefault(name, Series(times=[], values=[])).add(when, value)
    return found
