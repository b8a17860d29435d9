"""The file of a journal: its tables, older ones of it, and how it is opened.

Write-ahead log with ``synchronous=FULL``: a transaction is on disk when its commit returns
(https://sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmferry.errors import InputError

__all__ = ["SCHEMA_VERSION", "Db", "connect", "transaction"]

Db = sqlite3.Connection
SCHEMA_VERSION = 3
_APPLICATION = 0x766D6A6C
"""``application_id`` of the file, so that somebody else's database is not taken for a journal."""
_PATIENCE = 10.0
"""Seconds to wait for another process that has the journal locked."""

_EPOCHS = """
CREATE TABLE epoch (
    guest TEXT PRIMARY KEY,
    number INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE job (
    serial INTEGER PRIMARY KEY,
    job TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    guest TEXT NOT NULL,
    description BLOB NOT NULL,
    peer TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    phase TEXT NOT NULL,
    committed INTEGER NOT NULL,
    owner INTEGER NOT NULL,
    started INTEGER NOT NULL DEFAULT 0,
    withdrawn INTEGER NOT NULL DEFAULT 0,
    tidy INTEGER NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL,
    error TEXT NOT NULL,
    token BLOB NOT NULL,
    facts BLOB NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL
) STRICT;
CREATE TABLE disk (
    job TEXT NOT NULL REFERENCES job (job) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    location TEXT NOT NULL,
    volume TEXT NOT NULL,
    size INTEGER NOT NULL,
    block_size INTEGER NOT NULL,
    pending BLOB,
    PRIMARY KEY (job, name)
) STRICT;
{_EPOCHS}
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_UPGRADES = {
    1: "".join(
        f"ALTER TABLE job ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0;"
        for name in ("started", "withdrawn", "tidy")
    ),
    2: "".join((_EPOCHS, "INSERT INTO epoch SELECT guest, max(epoch) FROM job GROUP BY guest;")),
}
"""By schema version: what makes the next one of it. Columns and tables are only ever added."""


def _create_file(path: Path) -> None:
    """Make an empty file for its owner's eyes only, and its folder entry durable.

    Left alone if it exists: to open and close a database that SQLite has open in this process
    would drop its locks (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_whose(db: Db, path: Path) -> None:
    """Check whose file this is and how old, before anything in it is changed."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and application != _APPLICATION:
        raise InputError(f"{path} is an SQLite database, but not a journal of vmferry")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"journal {path} was written by a later release (schema {version}; this one knows "
            f"up to {SCHEMA_VERSION}); use that release, or name another journal"
        )


def _prepare(db: Db, path: Path) -> None:
    """Make a journal of an empty file; check that another is whole."""
    if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        db.executescript(_SCHEMA)
    elif db.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
        _upgrade(db)
    if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise InputError(f"journal {path} is damaged ({found}); move it away to begin another")


def _upgrade(db: Db) -> None:
    """Bring an older journal to this schema; one process does it, and all of it or nothing."""
    with transaction(db):
        (version,) = db.execute("PRAGMA user_version").fetchone()
        for number in range(version, SCHEMA_VERSION):
            for statement in filter(str.strip, _UPGRADES[number].split(";")):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def connect(path: Path) -> Db:
    """Open a journal, made or brought to this schema if need be. May be damaged all the same.

    Raises:
        InputError: it is no journal, of a later release, or damaged.
        sqlite3.Error, OSError: it cannot be used.

    """
    _create_file(path)
    db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    try:
        db.row_factory = sqlite3.Row
        _check_whose(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: Db) -> Iterator[None]:
    """All of what is done within, or nothing; no other process writes meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
