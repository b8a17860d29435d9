"""The tables, their version, and the way from an earlier one.

``run`` has a row for every attempt. It is inserted when the run begins and completed once, when it
has ended. Triggers refuse every other change.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from vmferry.errors import InputError
from vmferry.experiments.results import FIGURES

__all__ = ["APPLICATION", "VERSION", "prepare"]

APPLICATION = 0x766D6678
"""``application_id`` of the file: "vmfx"."""
VERSION = 1

_FIGURE_COLUMNS = "".join(f"    {name} REAL,\n" for name in FIGURES)
_TABLES = f"""
CREATE TABLE experiment (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    definition TEXT NOT NULL,
    seed INTEGER NOT NULL,
    vmferry TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    experiment INTEGER NOT NULL REFERENCES experiment (id),
    cell TEXT NOT NULL,
    repetition INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    position INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    parameters TEXT NOT NULL,
    spec TEXT NOT NULL,
    started REAL NOT NULL,
    ended REAL,
    begun REAL,
    outcome TEXT CHECK (outcome IN ('done', 'failed', 'interrupted')),
    error TEXT,
{_FIGURE_COLUMNS}    notes TEXT,
    host TEXT,
    versions TEXT,
    worker TEXT,
    UNIQUE (cell, repetition, attempt)
) STRICT;
CREATE TABLE phase (
    run INTEGER NOT NULL REFERENCES run (id),
    role TEXT NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    begin REAL NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (run, role, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE round (
    run INTEGER NOT NULL REFERENCES run (id),
    number INTEGER NOT NULL,
    memory INTEGER NOT NULL,
    scanned INTEGER NOT NULL,
    sent INTEGER NOT NULL,
    zeroes INTEGER NOT NULL,
    seconds REAL NOT NULL,
    dirty INTEGER NOT NULL,
    dirty_rate REAL NOT NULL,
    ended REAL NOT NULL,
    PRIMARY KEY (run, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE sample (
    run INTEGER NOT NULL REFERENCES run (id),
    series TEXT NOT NULL,
    number INTEGER NOT NULL,
    time REAL NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (run, series, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE event (
    run INTEGER NOT NULL REFERENCES run (id),
    number INTEGER NOT NULL,
    time REAL NOT NULL,
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    facts TEXT NOT NULL,
    PRIMARY KEY (run, number)
) STRICT, WITHOUT ROWID;
"""
_GUARDS = """
CREATE TRIGGER run_once BEFORE UPDATE ON run WHEN old.outcome IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a run that has ended is not changed'); END;
CREATE TRIGGER run_kept BEFORE DELETE ON run
BEGIN SELECT RAISE(ABORT, 'no run is removed'); END;
"""
_KEPT = ("experiment", "phase", "round", "sample", "event")
_GUARD = """
CREATE TRIGGER {0}_once BEFORE UPDATE ON {0}
BEGIN SELECT RAISE(ABORT, 'rows of {0} are not changed'); END;
CREATE TRIGGER {0}_kept BEFORE DELETE ON {0}
BEGIN SELECT RAISE(ABORT, 'rows of {0} are not removed'); END;
"""
_MIGRATIONS: dict[int, str] = {}
"""Scripts by the version that they begin at; each leads to the next."""


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables in an empty file, or bring those of an earlier version up to date.

    Raises:
        InputError: it is another program's database, or of a version that is not known.

    """
    application = _pragma(connection, "application_id")
    version = _pragma(connection, "user_version")
    if not application and not version and not _tables(connection):
        guards = _GUARDS + "".join(_GUARD.format(table) for table in _KEPT)
        _change(connection, _TABLES + guards, VERSION)
        return
    if application != APPLICATION:
        raise InputError(f"{path} is no database of experiments")
    if version > VERSION:
        raise InputError(
            f"{path} was written by a later vmferry (version {version} of its tables, "
            f"{VERSION} is known here); use that one, or another database"
        )
    for step in range(version, VERSION):
        if step not in _MIGRATIONS:
            raise InputError(f"{path} has tables of version {step}, which cannot be migrated")
        _change(connection, _MIGRATIONS[step], step + 1)


def _change(connection: sqlite3.Connection, script: str, version: int) -> None:
    pragmas = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {version};"
    connection.executescript(f"BEGIN IMMEDIATE; {script} {pragmas} COMMIT;")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _tables(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return int(count)
