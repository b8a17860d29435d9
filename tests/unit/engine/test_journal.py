from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vmferry.api import Phase
from vmferry.engine.journal import DiskRecord, JobRecord, Journal, MemoryJournal
from vmferry.engine.journal_file import SCHEMA_VERSION
from vmferry.engine.journal_sqlite import SqliteJournal
from vmferry.errors import InputError, VmferryError

DISKS = (
    DiskRecord(name="xvda", location="/srv/a.raw", size=1 << 40, block_size=4096),
    DiskRecord(name="xvdb", size=512, block_size=512, volume="qcow2", pending=b"\0map"),
)
JOB = JobRecord(
    job="a1",
    role="source",
    guest="web",
    description=b"\x00\xff",
    peer="host2",
    epoch=3,
    token=b"secret",
    facts=b"{}",
    disks=DISKS,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture(params=["memory", "sqlite"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    made: Journal
    made = (
        MemoryJournal(Clock())
        if request.param == "memory"
        else SqliteJournal(tmp_path / "journal", Clock())
    )
    yield made
    await made.close()


async def reopened(journal: Journal) -> Journal:
    """The journal as the next process finds it."""
    if isinstance(journal, MemoryJournal):
        return journal.crash()
    assert isinstance(journal, SqliteJournal)
    return SqliteJournal(journal.path, Clock())


async def test_a_record_comes_back_as_it_was(journal: Journal) -> None:
    await journal.open_job(JOB)
    after = await reopened(journal)
    record = await after.load("a1")
    assert record == msgspec.structs.replace(JOB, created=1001.0, updated=1001.0)
    assert isinstance(record.phase, Phase)
    assert record.committed is False
    await after.close()


async def test_every_field_can_be_updated_and_survives(journal: Journal) -> None:
    await journal.open_job(JOB)
    fields: dict[str, Any] = {
        "guest": "db",
        "description": b"d",
        "peer": "host3",
        "epoch": 4,
        "phase": Phase.PULL,
        "committed": True,
        "owner": True,
        "started": True,
        "withdrawn": True,
        "tidy": True,
        "outcome": "done",
        "error": "none",
        "token": b"t",
        "facts": b"f",
    }
    assert set(fields) == set(JobRecord.__struct_fields__) - {
        "job",
        "role",
        "disks",
        "created",
        "updated",
    }
    for name, value in fields.items():
        await journal.update("a1", **{name: value})
    after = await reopened(journal)
    record = await after.load("a1")
    assert record == msgspec.structs.replace(JOB, **fields, created=1001.0, updated=record.updated)
    assert record.updated == 1001.0 + len(fields)
    await after.close()


async def test_pending_maps(journal: Journal) -> None:
    await journal.open_job(JOB)
    await journal.save_pending("a1", "xvda", b"first")
    await journal.save_pending("a1", "xvda", b"second")
    after = await reopened(journal)
    assert [disk.pending for disk in (await after.load("a1")).disks] == [b"second", b"\0map"]
    assert [disk.pending for disk in (await after.jobs())[0].disks] == [None, None]
    await after.close()


async def test_disks_can_be_told_later(journal: Journal) -> None:
    await journal.open_job(msgspec.structs.replace(JOB, disks=()))
    await journal.set_disks("a1", DISKS)
    assert (await journal.load("a1")).disks == DISKS
    await journal.set_disks("a1", DISKS[::-1])
    assert (await journal.load("a1")).disks == DISKS[::-1]


async def test_jobs_are_listed_in_order_and_forgotten(journal: Journal) -> None:
    for name in ("b", "a", "c"):
        await journal.open_job(msgspec.structs.replace(JOB, job=name))
    await journal.update("b", epoch=9)
    assert [record.job for record in await journal.jobs()] == ["b", "a", "c"]
    await journal.forget("a")
    await journal.forget("a")
    assert [record.job for record in await journal.jobs()] == ["b", "c"]
    await journal.open_job(msgspec.structs.replace(JOB, job="a", disks=()))
    assert (await journal.load("a")).disks == ()


async def test_what_is_wrong_is_named_and_changes_nothing(journal: Journal) -> None:
    await journal.open_job(JOB)
    before = await journal.load("a1")
    with pytest.raises(InputError, match="a1 already"):
        await journal.open_job(JOB)
    for call in (
        journal.load("zz"),
        journal.update("zz", epoch=1),
        journal.save_pending("zz", "xvda", b""),
        journal.set_disks("zz", ()),
    ):
        with pytest.raises(InputError, match="no job zz"):
            await call
    with pytest.raises(InputError, match="no disk 'sda'"):
        await journal.save_pending("a1", "sda", b"")
    for name in ("role", "disks", "updated", "colour"):
        with pytest.raises(InputError, match=f"'{name}' is no field"):
            await journal.update("a1", **{name: "b"})
    for name, value in (("epoch", "x"), ("phase", "lunch"), ("outcome", "maybe"), ("owner", 2)):
        with pytest.raises(InputError, match=f"job a1: .*{name}"):
            await journal.update("a1", **{name: value})
    assert await journal.load("a1") == before


async def test_concurrent_calls_are_all_carried_out(journal: Journal) -> None:
    await journal.open_job(JOB)
    maps = [b"%d" % number for number in range(50)]
    await asyncio.gather(
        *(journal.save_pending("a1", "xvda", encoded) for encoded in maps),
        *(journal.update("a1", epoch=number) for number in range(50)),
    )
    record = await journal.load("a1")
    assert (record.epoch, record.disks[0].pending) == (49, b"49")


# -- the file


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with SqliteJournal(tmp_path / "journal") as journal:
            await journal.open_job(JOB)
            modes = {
                name: stat.S_IMODE(os.stat(tmp_path / name).st_mode)
                for name in os.listdir(tmp_path)
            }
    finally:
        os.umask(before)
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}


async def test_commits_are_synchronous(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "journal") as journal:
        pragmas = await journal._run(
            lambda db: [
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("synchronous", "journal_mode", "foreign_keys")
            ]
        )
    assert pragmas == [2, "wal", 1]


async def test_the_event_loop_goes_on_while_the_file_is_locked(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "journal") as journal:
        await journal.open_job(JOB)
        other = sqlite3.connect(journal.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(journal.update("a1", epoch=7))
        await asyncio.sleep(0.05)
        assert not task.done()
        other.execute("ROLLBACK")
        other.close()
        await task
        assert (await journal.load("a1")).epoch == 7


async def test_one_thread_of_its_own(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "journal") as journal:
        names = {await journal._run(lambda db: threading.current_thread().name) for _ in range(5)}
    assert names == {"vmferry-journal_0"}


async def test_two_journals_on_one_file(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "j") as one, SqliteJournal(tmp_path / "j") as other:
        await one.open_job(JOB)
        await other.update("a1", epoch=8)
        assert (await one.load("a1")).epoch == 8


@pytest.mark.parametrize(("first", "other"), [("owner", "withdrawn"), ("withdrawn", "owner")])
async def test_owner_and_withdrawn_exclude_each_other(
    journal: Journal, first: Any, other: Any
) -> None:
    await journal.open_job(JOB)
    decided = await journal.decide("a1", first)
    assert (getattr(decided, first), getattr(decided, other)) == (True, False)
    for field in (other, first):
        assert await journal.decide("a1", field) == decided
    after = await reopened(journal)
    record = await after.load("a1")
    assert (getattr(record, first), getattr(record, other)) == (True, False)
    await after.close()


async def test_of_two_processes_one_decides(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "j") as one, SqliteJournal(tmp_path / "j") as other:
        for number in range(20):
            await one.open_job(msgspec.structs.replace(JOB, job=f"a{number}", disks=()))
            mine, theirs = await asyncio.gather(
                one.decide(f"a{number}", "owner"), other.decide(f"a{number}", "withdrawn")
            )
            assert (mine.owner, mine.withdrawn) == (theirs.owner, theirs.withdrawn)
            assert mine.owner != mine.withdrawn


async def test_a_journal_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    async with SqliteJournal(path, Clock()) as journal:
        await journal.open_job(JOB)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for column in ("started", "withdrawn", "tidy"):
            db.execute(f"ALTER TABLE job DROP COLUMN {column}")
        db.execute("DROP TABLE epoch")
        db.execute("PRAGMA user_version = 1")
    db.close()
    async with SqliteJournal(path, Clock()) as journal:
        record = await journal.load("a1")
        assert record == msgspec.structs.replace(JOB, created=1001.0, updated=1001.0)
        assert await journal.epoch("web") == 3
        assert (await journal.decide("a1", "withdrawn")).withdrawn
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


async def test_the_epoch_of_a_guest_only_grows(journal: Journal) -> None:
    assert await journal.epoch("web") == 0
    await journal.open_job(JOB)
    assert await journal.epoch("web") == 3
    await journal.update("a1", epoch=7)
    await journal.open_job(msgspec.structs.replace(JOB, job="a2", epoch=5))
    await journal.forget("a1")
    after = await reopened(journal)
    assert await after.epoch("web") == 7
    assert await after.epoch("db") == 0
    await after.close()


_CRASHING = """
import asyncio, os, signal, sys
from vmferry.engine.journal import DiskRecord, JobRecord
from vmferry.engine.journal_sqlite import SqliteJournal

async def main():
    journal = SqliteJournal(sys.argv[1])
    disk = DiskRecord(name="xvda", size=4096, block_size=512)
    await journal.open_job(JobRecord(job="a1", role="source", disks=(disk,)))
    await journal.save_pending("a1", "xvda", b"m" * 100_000)
    await journal.update("a1", committed=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_was_awaited_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", _CRASHING, str(path)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    async with SqliteJournal(path) as journal:
        record = await journal.load("a1")
    assert record.committed
    assert record.disks[0].pending == b"m" * 100_000


async def test_a_later_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    async with SqliteJournal(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    journal = SqliteJournal(path)
    with pytest.raises(InputError, match=r"journal .*/journal was written by a later release"):
        await journal.open()
    await journal.close()


async def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE cats (name TEXT)")
    db.close()
    before = path.read_bytes()
    journal = SqliteJournal(path)
    with pytest.raises(InputError, match="not a journal of vmferry"):
        await journal.open()
    await journal.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM cats").fetchone() == (0,)
    assert len(before) == path.stat().st_size


@pytest.mark.parametrize("damage", ["text", "middle", "short"])
async def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal"
    async with SqliteJournal(path) as journal:
        await journal.open_job(JOB)
        await journal.save_pending("a1", "xvda", bytes(200_000))
    content = bytearray(path.read_bytes())
    if damage == "text":
        content[:] = b"this is no database at all\n" * 1000
    elif damage == "middle":
        content[4096 : len(content) : 3] = b"\xa5" * len(range(4096, len(content), 3))
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    journal = SqliteJournal(path)
    with pytest.raises(InputError, match=r"/journal is damaged"):
        await journal.load("a1")
    await journal.close()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "nowhere" / "journal")
    with pytest.raises(VmferryError, match=r"nowhere/journal cannot be"):
        await journal.open()
    await journal.close()


async def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "journal") as journal:
        await journal.open_job(JOB)
        await journal._run(lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())
        with pytest.raises(VmferryError, match=r"/journal cannot be used"):
            await journal.save_pending("a1", "xvda", bytes(10_000_000))
        assert (await journal.load("a1")).disks[0].pending is None


async def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    await journal.close()
    await journal.close()
    with pytest.raises(VmferryError, match="closed"):
        await journal.jobs()
