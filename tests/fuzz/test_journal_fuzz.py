"""A journal that is damaged, foreign or lies: an error that names it, never anything else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmferry.api import Guest
from vmferry.engine.journal import DiskRecord, JobRecord, MemoryJournal
from vmferry.engine.journal_sqlite import SqliteJournal
from vmferry.engine.recovering import recover
from vmferry.engine.resuming import ResumedJob
from vmferry.engine.settings import Settings
from vmferry.errors import PluginNotFound, VmferryError
from vmferry.plugins import Hooks

EFFORT = int(os.environ.get("VMFERRY_EFFORT", "1"))
"""How many times the usual number of examples."""
RECORD = JobRecord(
    job="a1b2c3d4e5f6",
    role="source",
    guest="web",
    description=msgspec.msgpack.encode(Guest(name="web", hypervisor="process")),
    peer="tcp://127.0.0.1:7420",
    facts=msgspec.msgpack.encode(Settings()),
    token=b"t" * 16,
    disks=(DiskRecord(name="disk0", size=1 << 20, block_size=4096, pending=b"\x01" * 40),),
)

fuzzed = settings(max_examples=60 * EFFORT, deadline=None)


def fresh() -> bytes:
    """The bytes of a journal with one job."""

    async def make(path: Path) -> None:
        async with SqliteJournal(path) as journal:
            await journal.open_job(RECORD)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.sqlite"
        asyncio.run(make(path))
        return path.read_bytes()


VALID = fresh()


async def use(path: Path) -> None:
    """All that an agent and the commands do with a journal."""
    async with SqliteJournal(path) as journal:
        for known in await journal.jobs():
            record = await journal.load(known.job)
            assert isinstance(record, JobRecord)
            await journal.update(known.job, error="x")
        await journal.open_job(msgspec.structs.replace(RECORD, job="ffffffffffff"))
        await journal.save_pending("ffffffffffff", "disk0", b"y")


def survives(content: bytes) -> None:
    """Errors of ours and nothing else; whoever opens it again finds the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.sqlite"
        path.write_bytes(content)
        with contextlib.suppress(VmferryError):
            asyncio.run(use(path))


@fuzzed
@given(st.binary(max_size=2000))
def test_any_file(content: bytes) -> None:
    survives(content)


@fuzzed
@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=40
    ),
    st.integers(0, len(VALID)),
)
@example([(3553, 128)], 0)  # found in a long run: texts that are not UTF-8
@example([(3105, 128)], 0)
def test_a_journal_with_bytes_changed_and_cut_off(changes: list[tuple[int, int]], end: int) -> None:
    damaged = bytearray(VALID)
    for place, value in changes:
        damaged[place] = value
    survives(bytes(damaged[:end] if end else damaged))


COLUMNS = (*(name for name in JobRecord.__struct_fields__ if name != "disks"), "serial")
VALUES = st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text() | st.binary()


@fuzzed
@given(st.sampled_from(COLUMNS), VALUES)
def test_a_field_that_holds_something_else(column: str, value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.sqlite"
        path.write_bytes(VALID)
        db = sqlite3.connect(path)
        try:
            # a text of lone surrogates is none, a value of another type is refused by the schema
            with contextlib.suppress(sqlite3.Error, UnicodeEncodeError):
                db.execute(f"UPDATE job SET {column} = ?", (value,))
                db.commit()
        finally:
            db.close()
        with contextlib.suppress(VmferryError):
            asyncio.run(use(path))


def test_the_valid_journal_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    path.write_bytes(VALID)
    asyncio.run(use(path))


@pytest.mark.parametrize("foreign", ["CREATE TABLE t (x)", "CREATE TABLE job (job TEXT)"])
def test_somebody_elses_database_is_left_alone(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "j.sqlite"
    db = sqlite3.connect(path)
    db.execute(foreign)
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(VmferryError, match="not a journal"):
        asyncio.run(use(path))
    assert path.read_bytes() == before


@fuzzed
@given(st.sampled_from(["description", "facts"]), st.binary(max_size=300))
def test_what_a_job_was_described_as(field: str, value: bytes) -> None:
    """Not what the engine put there: a job that cannot be gone on with, an agent that can."""

    async def body() -> None:
        journal = MemoryJournal()
        for job, role in (("a1b2c3d4e5f6", "source"), ("ffffffffffff", "destination")):
            made = {"job": job, "role": role, "owner": role == "destination", field: value}
            await journal.open_job(
                msgspec.convert(msgspec.structs.asdict(RECORD) | made, JobRecord)
            )
        services: Any = SimpleNamespace(
            journal=journal, journals=[journal], hooks=Hooks(), registry=NoRegistry()
        )
        assert await recover(services) == []
        with contextlib.suppress(VmferryError):
            ResumedJob(services, await journal.load("a1b2c3d4e5f6"), None)  # type: ignore[arg-type]

    asyncio.run(body())


class NoRegistry:
    """Has no plugin."""

    def hypervisor(self, name: str) -> None:
        raise PluginNotFound("hypervisor", name, [])
