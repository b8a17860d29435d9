"""A journal in one SQLite file. SQLite blocks, so one thread does it all."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from vmferry.engine.journal import Decided, DiskRecord, JobRecord, changed, decided
from vmferry.engine.journal_file import Db, connect, transaction
from vmferry.engine.scratch import map_scratch, remove_scratch
from vmferry.errors import InputError, VmferryError

__all__ = ["SqliteJournal"]

_FLAGS = ("committed", "owner", "started", "withdrawn", "tidy")
_JOB_FIELDS = tuple(name for name in JobRecord.__struct_fields__ if name != "disks")
_DISK_FIELDS = DiskRecord.__struct_fields__
_LIST_FIELDS = tuple(name if name != "pending" else "NULL AS pending" for name in _DISK_FIELDS)

P = ParamSpec("P")
T = TypeVar("T")


def _write_fields(db: Db, record: JobRecord, names: tuple[str, ...]) -> None:
    assignments = ", ".join(f"{name} = ?" for name in names)
    db.execute(
        f"UPDATE job SET {assignments} WHERE job = ?",  # noqa: S608
        [*(getattr(record, name) for name in names), record.job],
    )


def _note_epoch(db: Db, record: JobRecord) -> None:
    """It outlives the job, so that it never goes back."""
    db.execute(
        "INSERT INTO epoch VALUES (?, ?)"
        " ON CONFLICT (guest) DO UPDATE SET number = max(number, excluded.number)",
        (record.guest, record.epoch),
    )


def _insert_disks(db: Db, job: str, disks: tuple[DiskRecord, ...]) -> None:
    db.execute("DELETE FROM disk WHERE job = ?", (job,))
    marks = ", ".join("?" * (len(_DISK_FIELDS) + 2))
    rows = [
        (job, number, *(getattr(disk, name) for name in _DISK_FIELDS))
        for number, disk in enumerate(disks)
    ]
    names = ", ".join(("job", "number", *_DISK_FIELDS))
    db.executemany(f"INSERT INTO disk ({names}) VALUES ({marks})", rows)  # noqa: S608


def _read_disks(db: Db, job: str, fields: tuple[str, ...]) -> tuple[DiskRecord, ...]:
    rows = db.execute(
        f"SELECT {', '.join(fields)} FROM disk WHERE job = ? ORDER BY number",  # noqa: S608
        (job,),
    )
    return tuple(msgspec.convert(dict(row), DiskRecord) for row in rows)


def _record(row: sqlite3.Row, disks: tuple[DiskRecord, ...]) -> JobRecord:
    values = {name: row[name] for name in _JOB_FIELDS}
    values |= {name: bool(row[name]) for name in _FLAGS}
    return msgspec.convert({**values, "disks": disks}, JobRecord)


def _epoch(db: Db, guest: str) -> int:
    row = db.execute("SELECT number FROM epoch WHERE guest = ?", (guest,)).fetchone()
    return 0 if row is None else int(row["number"])


def _row(db: Db, job: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute("SELECT * FROM job WHERE job = ?", (job,)).fetchone()
    if row is None:
        raise InputError(f"journal: there is no job {job}")
    return row


class SqliteJournal:
    """A journal in the file ``path``, made when first used, readable by its owner only.

    Several processes may use one file. Whatever opens or uses it raises ``InputError`` if it is
    damaged, of a later release or no journal, and ``VmferryError`` if it cannot be written.

    Args:
        path: the file; its folder must exist, on a local file system.
        clock: Unix time in seconds.

    """

    def __init__(
        self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vmferry-journal")
        self._db: Db | None = None
        self._closed = False

    async def open(self) -> SqliteJournal:
        """Open the file at once rather than at the first use, to see errors early."""
        await self._run(lambda db: None)
        return self

    async def __aenter__(self) -> SqliteJournal:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up the file, after what is under way. May be called twice."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    def _disconnect(self) -> None:
        if self._db:
            self._db.close()
            self._db = None

    async def _run(
        self, work: Callable[Concatenate[Db, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._closed:
            raise VmferryError(f"journal {self.path} is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: self._guard(work, *args, **kwargs))

    def _guard(self, work: Callable[Concatenate[Db, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do ``work`` on the connection, in the thread, with errors that name the file."""
        try:
            if self._db is None:
                self._db = connect(self.path)
            return work(self._db, *args, **kwargs)
        except sqlite3.OperationalError as error:
            raise VmferryError(f"journal {self.path} cannot be used: {error}") from error
        except (sqlite3.DatabaseError, msgspec.ValidationError, UnicodeDecodeError) as error:
            raise InputError(
                f"journal {self.path} is damaged or none ({error}); move it away to begin another"
            ) from error
        except OSError as error:
            raise VmferryError(f"journal {self.path} cannot be made: {error.strerror}") from error

    async def open_job(self, record: JobRecord) -> None:
        """See ``Journal``."""
        await self._run(self._open_job, record)

    def _open_job(self, db: Db, record: JobRecord) -> None:
        now = self._clock()
        record = msgspec.structs.replace(record, created=now, updated=now)
        marks = ", ".join("?" * len(_JOB_FIELDS))
        values = [getattr(record, name) for name in _JOB_FIELDS]
        with transaction(db):
            if db.execute("SELECT 1 FROM job WHERE job = ?", (record.job,)).fetchone():
                raise InputError(f"journal: there is a job {record.job} already")
            db.execute(
                f"INSERT INTO job ({', '.join(_JOB_FIELDS)}) VALUES ({marks})",  # noqa: S608
                values,
            )
            _insert_disks(db, record.job, record.disks)
            _note_epoch(db, record)

    async def set_disks(self, job: str, disks: tuple[DiskRecord, ...]) -> None:
        """See ``Journal``."""
        await self._run(self._set_disks, job, disks)

    def _set_disks(self, db: Db, job: str, disks: tuple[DiskRecord, ...]) -> None:
        with transaction(db):
            _row(db, job)
            _insert_disks(db, job, disks)
            self._touch(db, job)

    async def update(self, job: str, **fields: Any) -> None:
        """See ``Journal``."""
        await self._run(self._update, job, fields)

    def _update(self, db: Db, job: str, fields: dict[str, Any]) -> None:
        with transaction(db):
            record = changed(_record(_row(db, job), ()), fields, self._clock())
            _write_fields(db, record, (*fields, "updated"))
            _note_epoch(db, record)
        if record.outcome:
            remove_scratch(self._folder, job)

    async def decide(self, job: str, field: Decided) -> JobRecord:
        """See ``Journal``."""
        return await self._run(self._decide, job, field)

    def _decide(self, db: Db, job: str, field: Decided) -> JobRecord:
        with transaction(db):
            disks = _read_disks(db, job, _LIST_FIELDS)
            record = decided(_record(_row(db, job), disks), field, self._clock())
            _write_fields(db, record, (field, "updated"))
        return record

    async def save_pending(self, job: str, disk: str, encoded: bytes) -> None:
        """See ``Journal``."""
        await self._run(self._save_pending, job, disk, encoded)

    def _save_pending(self, db: Db, job: str, disk: str, encoded: bytes) -> None:
        with transaction(db):
            _row(db, job)
            cursor = db.execute(
                "UPDATE disk SET pending = ? WHERE job = ? AND name = ?", (encoded, job, disk)
            )
            if not cursor.rowcount:
                raise InputError(f"journal: job {job} has no disk {disk!r}")
            self._touch(db, job)

    def _touch(self, db: Db, job: str) -> None:
        db.execute("UPDATE job SET updated = ? WHERE job = ?", (self._clock(), job))

    async def load(self, job: str) -> JobRecord:
        """See ``Journal``."""
        return await self._run(
            lambda db: _record(_row(db, job), _read_disks(db, job, _DISK_FIELDS))
        )

    async def jobs(self) -> list[JobRecord]:
        """See ``Journal``."""
        return await self._run(
            lambda db: [
                _record(row, _read_disks(db, row["job"], _LIST_FIELDS))
                for row in db.execute("SELECT * FROM job ORDER BY serial").fetchall()
            ]
        )

    async def epoch(self, guest: str) -> int:
        """See ``Journal``."""
        return await self._run(_epoch, guest)

    async def scratch(self, job: str, disk: str, size: int) -> memoryview:
        """See ``Journal``; in files beside the journal."""
        return await self._run(lambda _: map_scratch(self._folder, job, disk, size))

    @property
    def _folder(self) -> Path:
        return self.path.with_name(self.path.name + ".scratch")

    async def forget(self, job: str) -> None:
        """See ``Journal``."""
        await self._run(self._forget, job)

    def _forget(self, db: Db, job: str) -> None:
        with transaction(db):
            db.execute("DELETE FROM job WHERE job = ?", (job,))
        remove_scratch(self._folder, job)
