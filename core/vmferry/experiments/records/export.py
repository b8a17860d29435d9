"""The tables as CSV or Parquet files, one for each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmferry.errors import InputError
from vmferry.experiments.extras import need
from vmferry.experiments.parameters import AXES
from vmferry.experiments.records.database import Database

__all__ = ["FORMATS", "export"]

_TABLES = ("run", "phase", "round", "sample", "event")
_BATCH = 50_000
Rows = list[tuple[Any, ...]]


def export(database: Database, folder: Path, form: str) -> list[Path]:
    """Write every table into a file of its own in ``folder``; returns the files.

    In ``run`` each axis of the matrix is a column. Nothing that is there is overwritten.

    Raises:
        InputError: a file is there already or cannot be written, or pyarrow is not installed.

    """
    write, suffix = FORMATS[form]
    paths = [folder / f"{table}.{suffix}" for table in _TABLES]
    if there := [path for path in paths if path.exists()]:
        raise InputError(f"{there[0]} exists; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for table, path in zip(_TABLES, paths, strict=True):
            columns, batches = _content(database, table)
            write(path, columns, batches)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from error
    return paths


def _content(database: Database, table: str) -> tuple[list[str], Iterator[Rows]]:
    cursor = database.connection.execute(f"SELECT * FROM {table} ORDER BY 1")  # noqa: S608
    columns = [description[0] for description in cursor.description]
    batches = iter(lambda: cursor.fetchmany(_BATCH), [])
    if table != "run":
        return columns, batches
    place = columns.index("parameters")
    wide = [*columns[:place], *AXES, *columns[place + 1 :]]
    return wide, ([_widened(row, place) for row in batch] for batch in batches)


def _widened(row: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    values = json.loads(row[place])
    return (*row[:place], *(values.get(axis) for axis in AXES), *row[place + 1 :])


def _csv(path: Path, columns: list[str], batches: Iterator[Rows]) -> None:
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for batch in batches:
            writer.writerows(batch)


def _parquet(path: Path, columns: list[str], batches: Iterator[Rows]) -> None:
    arrow = need("pyarrow", "experiments", "Parquet")
    parquet = need("pyarrow.parquet", "experiments", "Parquet")
    rows = [row for batch in batches for row in batch]
    values = zip(*rows, strict=True) if rows else ((),) * len(columns)
    arrays = [arrow.array(list(column)) for column in values]
    parquet.write_table(arrow.table(arrays, names=columns), path, compression="zstd")


FORMATS = {"csv": (_csv, "csv"), "parquet": (_parquet, "parquet")}
"""Writer and suffix of each."""
