"""The database keeps every attempt, changes none, and knows its own tables."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from pretending import Describe, made_up

from vmferry.errors import InputError
from vmferry.experiments.matrix import Run, make_cells, order
from vmferry.experiments.records import load_runs, open_database, schema
from vmferry.experiments.records.database import Database, sole_writer
from vmferry.experiments.records.reading import load_phases, load_rounds, load_series


@pytest.fixture
def runs(describe: Describe) -> list[Run]:
    definition = describe("[matrix]\nblock_size = [4096, 8192]\n")
    return order(definition, make_cells(definition))


def stored(database: Database, describe: Describe, run: Run) -> int:
    row = database.begin(database.experiment(describe("[matrix]\n")), run, "worker1")
    database.end(row, made_up(run))
    return row


def test_a_run_comes_back_as_it_was(describe: Describe, runs: list[Run], tmp_path: Path) -> None:
    run = runs[0]
    with open_database(tmp_path / "a.sqlite", create=True) as database:
        row = stored(database, describe, run)
        (found,) = load_runs(database)
        assert (found.cell, found.seed, found.worker) == (
            run.cell.spec.cell,
            run.spec.seed,
            "worker1",
        )
        assert found.parameters == run.cell.shown
        wanted = made_up(run)
        assert {k: v for k, v in found.figures.items() if v is not None} == wanted.figures
        assert load_phases(database, row) == wanted.phases
        assert load_rounds(database, row) == wanted.rounds
        assert load_series(database, row) == wanted.series


def test_attempts_are_counted_and_none_is_replaced(
    describe: Describe, runs: list[Run], tmp_path: Path
) -> None:
    with open_database(tmp_path / "a.sqlite", create=True) as database:
        stored(database, describe, runs[0])
        stored(database, describe, runs[0])
        assert [run.attempt for run in load_runs(database)] == [0, 1]
        key = (runs[0].cell.spec.cell, runs[0].repetition)
        assert database.outcomes() == {key: ["done", "done"]}


@pytest.mark.parametrize("table", ["experiment", "run", "phase", "round", "sample"])
@pytest.mark.parametrize("change", ["UPDATE {} SET rowid_or = 1", "DELETE FROM {}"])
def test_what_is_stored_stays(
    describe: Describe, runs: list[Run], tmp_path: Path, table: str, change: str
) -> None:
    column = {"experiment": "seed", "run": "seed", "phase": "begin", "round": "sent"}
    with open_database(tmp_path / "a.sqlite", create=True) as database:
        stored(database, describe, runs[0])
        text = change.format(table).replace("rowid_or", column.get(table, "value"))
        with pytest.raises(sqlite3.IntegrityError, match=r"not (changed|removed)|is removed"):
            database.connection.execute(text)


def test_a_run_that_never_ended_was_interrupted(
    describe: Describe, runs: list[Run], tmp_path: Path
) -> None:
    with open_database(tmp_path / "a.sqlite", create=True) as database:
        database.begin(database.experiment(describe("[matrix]\n")), runs[0])
        assert database.close_abandoned() == 1
        (found,) = load_runs(database)
        assert found.outcome == "interrupted"


def test_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with open_database(path, create=True) as database:
        database.connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    with pytest.raises(InputError, match="later vmferry"), open_database(path):
        pass


def test_an_earlier_version_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.sqlite"
    with open_database(path, create=True):
        pass
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(InputError, match="cannot be migrated"), open_database(path):
        pass
    step = {schema.VERSION - 1: "ALTER TABLE run ADD COLUMN mood TEXT;"}
    monkeypatch.setattr(schema, "_MIGRATIONS", step)
    with open_database(path) as database:
        database.connection.execute("SELECT mood FROM run")
    with open_database(path):
        pass


@pytest.mark.parametrize("content", [b"not a database at all" * 100, None])
def test_another_programs_file_is_refused_and_left_alone(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "a.sqlite"
    if content is None:
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE recipes (name TEXT)")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.sqlite"), open_database(path, create=True):
        pass
    assert content is None or path.read_bytes() == before


def test_a_database_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with pytest.raises(InputError, match="nothing was run"), open_database(path):
        pass
    assert not path.exists()


def test_one_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with sole_writer(path), pytest.raises(InputError, match="another"), sole_writer(path):
        pass
    with sole_writer(path):
        pass
