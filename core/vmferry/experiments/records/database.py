"""Writing runs: a row when one begins, and all that was measured when it has ended."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from vmferry import __version__
from vmferry.errors import InputError
from vmferry.experiments.definition import Definition
from vmferry.experiments.matrix import Run
from vmferry.experiments.records.schema import prepare
from vmferry.experiments.results import FIGURES, Result

__all__ = ["Database", "open_database", "sole_writer"]

_BUSY = 30.0


def _json(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str, order="sorted").decode()


class Database:
    """An open database. Methods that write do so in one transaction each."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection, self.path = connection, path

    def experiment(self, definition: Definition) -> int:
        """Number of the row with this very definition, which is added if it is new."""
        found = self.connection.execute(
            "SELECT id FROM experiment WHERE name = ? AND definition = ? AND vmferry = ?",
            (definition.name, definition.text, __version__),
        ).fetchone()
        if found:
            return int(found[0])
        head = definition.head
        row = (definition.name, head.description, definition.text, head.seed, __version__)
        with self.connection:
            cursor = self.connection.execute(
                "INSERT INTO experiment (name, description, definition, seed, vmferry, created) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (*row, time.time()),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def outcomes(self) -> dict[tuple[str, int], list[str | None]]:
        """Of each cell and repetition the outcomes of its attempts, first one first."""
        found: dict[tuple[str, int], list[str | None]] = {}
        for cell, repetition, outcome in self.connection.execute(
            "SELECT cell, repetition, outcome FROM run ORDER BY cell, repetition, attempt"
        ):
            found.setdefault((cell, repetition), []).append(outcome)
        return found

    def begin(self, experiment: int, run: Run, worker: str = "") -> int:
        """Note that a run begins; returns the number of its row."""
        spec = run.spec
        with self.connection:
            cursor = self.connection.execute(
                "INSERT INTO run (experiment, cell, repetition, attempt, position, seed, "
                "parameters, spec, started, worker) VALUES (:experiment, :cell, :repetition, "
                "(SELECT count(*) FROM run WHERE cell = :cell AND repetition = :repetition), "
                ":position, :seed, :parameters, :spec, :started, :worker)",
                {
                    "experiment": experiment,
                    "cell": run.cell.spec.cell,
                    "repetition": run.repetition,
                    "position": run.position,
                    "seed": spec.seed,
                    "parameters": _json(run.cell.shown),
                    "spec": _json(spec),
                    "started": time.time(),
                    "worker": worker,
                },
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end(self, row: int, result: Result) -> None:
        """Note how a run ended, with all that was measured."""
        figures = {name: result.figures.get(name) for name in FIGURES}
        values = {
            "ended": time.time(),
            "begun": result.begun or None,
            "outcome": result.outcome,
            "error": result.error,
            "notes": _json(result.notes),
            "host": _json(result.host),
            "versions": _json(result.versions),
            **figures,
        }
        assignments = ", ".join(f"{name} = :{name}" for name in values)
        with self.connection:
            self._series(row, result)
            self.connection.execute(
                f"UPDATE run SET {assignments} WHERE id = :row",  # noqa: S608 # our own names
                {**values, "row": row},
            )

    def _series(self, row: int, result: Result) -> None:
        add = self.connection.executemany
        numbers: dict[str, int] = {}
        phases = []
        for one in result.phases:
            number = numbers[one.role] = numbers.get(one.role, -1) + 1
            phases.append((row, one.role, number, one.name, one.begin, one.seconds))
        add("INSERT INTO phase VALUES (?, ?, ?, ?, ?, ?)", phases)
        add(
            "INSERT INTO round VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(row, number, one.memory, one.scanned, one.sent, one.zeroes, one.seconds),
                    *(one.dirty, one.dirty / one.seconds if one.seconds else 0.0, one.end),
                )
                for number, one in enumerate(result.rounds)
            ],
        )
        add(
            "INSERT INTO sample VALUES (?, ?, ?, ?, ?)",
            (
                (row, name, number, when, value)
                for name, series in result.series.items()
                for number, (when, value) in enumerate(
                    zip(series.times, series.values, strict=True)
                )
            ),
        )
        add(
            "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)",
            [
                (row, number, one.time, one.role, one.name, _json(one.facts))
                for number, one in enumerate(result.events)
            ],
        )

    def close_abandoned(self) -> int:
        """Note of every run that began and never ended that it was interrupted; returns how many.

        Only for the one that is the :func:`sole_writer`.
        """
        with self.connection:
            cursor = self.connection.execute(
                "UPDATE run SET outcome = 'interrupted', "
                "error = 'whoever ran it was gone before it ended' WHERE outcome IS NULL"
            )
        return cursor.rowcount


@contextmanager
def open_database(path: Path, *, create: bool = False) -> Iterator[Database]:
    """A database; made if it is not there and ``create`` is set.

    Raises:
        InputError: there is none, it is something else, or it is of a later version.

    """
    if not create and not path.exists():
        raise InputError(f"there is no database {path}: nothing was run yet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_BUSY)) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA journal_mode = WAL")
            prepare(connection, path)
            yield Database(connection, path)
    except OSError as error:
        raise InputError(f"cannot use {path}: {error.strerror}") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path} cannot be used as a database: {error}") from error


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep others from running experiments into the same database while inside.

    Raises ``InputError`` if somebody does.
    """
    lock = path.with_name(f"{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another `migrate experiment run` is writing to {path}") from None
        yield
    finally:
        os.close(descriptor)
