"""``migrate cleanup`` on the journals: half-made disks, old jobs, sockets of the dead."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from vmferry.api import Guest
from vmferry.cli.cleanup import cleanup
from vmferry.engine.journal import DiskRecord, JobRecord
from vmferry.engine.journal_sqlite import SqliteJournal

GUEST = Guest(name="web", uuid="", hypervisor="process", memory=1 << 20, disks=())


def job(name: str, disk: Path | None = None, **fields: object) -> JobRecord:
    disks = (DiskRecord(name="d", location=str(disk), size=512, block_size=512),) if disk else ()
    record = JobRecord(job=name, role="destination", guest="web", disks=disks)
    given = {"description": msgspec.msgpack.encode(GUEST), **fields}
    return msgspec.structs.replace(record, **given)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path


def write(state: Path, *records: JobRecord) -> None:
    async def work() -> None:
        async with SqliteJournal(state / "destination.sqlite", lambda: 1000.0) as journal:
            for record in records:
                await journal.open_job(record)

    asyncio.run(work())


def known(state: Path) -> list[str]:
    async def work() -> list[str]:
        async with SqliteJournal(state / "destination.sqlite") as journal:
            return [one.job for one in await journal.jobs()]

    return asyncio.run(work())


def clean(state: Path, *options: str) -> Result:
    host = f"state_dir={state / 'guests'}"
    arguments = ["--state-dir", str(state), "--hypervisor-opt", host, *options]
    result = CliRunner().invoke(cleanup, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    return result


def test_half_made_disks_go_only_when_asked_and_only_those_of_jobs_given_up(state: Path) -> None:
    half, wanted = state / "half.raw", state / "wanted.raw"
    half.touch()
    wanted.touch()
    write(
        state,
        job("aa", half, withdrawn=True, outcome="failed"),
        job("ab", wanted, withdrawn=True, outcome="failed"),
        job("ac", wanted, owner=True, outcome="done"),
    )
    clean(state)
    assert half.exists()
    assert f"disk {half}" in clean(state, "--disks", "--dry-run").output
    assert half.exists()
    clean(state, "--disks")
    assert not half.exists()
    assert wanted.exists()
    assert "nothing is left behind" in clean(state, "--disks").output


def test_jobs_are_forgotten_once_they_are_over_and_old(state: Path) -> None:
    write(
        state,
        job("aa", outcome="done", owner=True),
        job("ab", outcome="failed", withdrawn=True, tidy=True),
        job("ac", owner=True),
        job("ad", outcome="failed", owner=True),
        job("ae", outcome="failed", withdrawn=True, disk=state / "left.raw"),
    )
    clean(state, "--forget", "10000000h")
    assert len(known(state)) == 5
    assert "job aa" in clean(state, "--forget", "1h", "--dry-run").output
    assert len(known(state)) == 5
    clean(state, "--forget", "1h")
    assert known(state) == ["ac", "ad", "ae"]


def test_a_job_is_not_forgotten_while_the_clean_up_of_another_could_take_its_disk(
    state: Path,
) -> None:
    disk = state / "web.raw"
    disk.touch()
    strange = msgspec.structs.replace(GUEST, hypervisor="gone")  # it cannot be tidied up
    description = msgspec.msgpack.encode(strange)
    write(
        state,
        job("aa", disk, withdrawn=True, outcome="failed", description=description),
        job("ab", disk, owner=True, outcome="done"),
    )
    clean(state, "--forget", "1h")
    assert known(state) == ["aa", "ab"]
    clean(state, "--disks", "--forget", "1h")
    assert disk.exists()


def test_sockets_on_which_nobody_listens_go(state: Path) -> None:
    (state / "agents").mkdir()
    dead, alive = state / "agents" / "1.sock", state / "aaaaaaaa.sock"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(dead))
        other.bind(str(alive))
        other.listen()
        one.close()
        assert str(dead) in clean(state).output
        assert alive.exists()
        assert not dead.exists()
