"""The other host of a job: how it is reached, and its journal read from a file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from vmferry.api import Address
from vmferry.cli.assembly import Assembly
from vmferry.engine.journal import JobRecord
from vmferry.engine.journal_sqlite import SqliteJournal
from vmferry.errors import InputError
from vmferry.wire.link import Link

__all__ = ["connector", "find_record", "read_record"]

_PARTS = ("", "-wal")


def connector(assembly: Assembly, record: JobRecord) -> Any:
    """Opens links with a number of lanes to the destination of a job."""
    address = Address.parse(record.peer)

    async def connect(lanes: int) -> Link:
        return Link(await assembly.connect(address, lanes))

    return connect


async def find_record(state: Path, job: str) -> JobRecord:
    """A job in the journals of this host; raises ``InputError`` if it is in neither."""
    for role in ("source", "destination"):
        if (path := state / f"{role}.sqlite").exists():
            async with SqliteJournal(path) as journal:
                if job in [one.job for one in await journal.jobs()]:
                    return await journal.load(job)
    raise InputError(f"there is no job {job} in {state}; see 'migrate status --all'")


async def read_record(path: Path, job: str, role: str) -> JobRecord:
    """A job as another host's journal has it: a copy is read, the file is left alone.

    Args:
        path: the journal, or the state folder it is in.
        job: identifier of the migration.
        role: the other host's part in it.

    Raises:
        InputError: there is no such journal, or the job is not in it.

    """
    with tempfile.TemporaryDirectory(prefix="vmferry-journal-") as folder:
        async with SqliteJournal(_copied(path, role, Path(folder))) as journal:
            record = await journal.load(job)
    if record.role != role:
        raise InputError(f"--peer-journal {path} is of the {record.role}; give the {role}'s")
    return record


def _copied(path: Path, role: str, folder: Path) -> Path:
    file = path / f"{role}.sqlite" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"--peer-journal {path}: there is no journal {file}")
    for part in _PARTS:
        source = file.with_name(file.name + part)
        if source.exists():
            shutil.copyfile(source, folder / f"journal.sqlite{part}")
    return folder / "journal.sqlite"
