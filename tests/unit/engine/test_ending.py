"""The end of a job at its source: what is still removed, and when it counts as over."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vmferry.api.guest import Guest
from vmferry.api.hooks import Phase
from vmferry.engine.afterwards import Afterwards
from vmferry.engine.journal import JobRecord, MemoryJournal
from vmferry.engine.meter import Meter
from vmferry.engine.resuming import ResumedJob
from vmferry.engine.services import Services
from vmferry.engine.settings import Settings
from vmferry.engine.throttle import Throttle
from vmferry.errors import HypervisorError
from vmferry.plugins import Hooks
from vmferry.wire.messages import Local

GUEST = Guest(name="web", hypervisor="sim", memory=1 << 20)


class Hypervisor:
    """One that must not be asked for the guest; also the registry that has it."""

    def hypervisor(self, name: str) -> Hypervisor:
        return self

    async def recover(self, guest: Guest) -> Any:
        pytest.fail("the guest that runs here now is none of the job's")


class Leaving:
    """A departure whose guest can be removed, or not."""

    def __init__(self, *, stays: bool) -> None:
        self.stays = stays

    async def destroy(self) -> None:
        if self.stays:
            raise HypervisorError("made up")


def services(journal: MemoryJournal, beside: MemoryJournal | None = None) -> Services:
    registry: Any = Hypervisor()
    workers: Any = None
    return Services(
        registry=registry, hooks=Hooks(), workers=workers, journal=journal, beside=beside
    )


def record(job: str, **more: Any) -> JobRecord:
    encode = msgspec.msgpack.encode
    known = {"guest": "web", "description": encode(GUEST), "facts": encode(Settings())}
    return JobRecord(job=job, **{**known, **more})


async def test_a_guest_that_has_come_back_is_left_alone() -> None:
    here, beside = MemoryJournal(), MemoryJournal()
    first = record("first", role="source", epoch=1, committed=True, phase=Phase.PULL)
    await here.open_job(first)
    await beside.open_job(record("back", role="destination", epoch=2, owner=True, started=True))

    async def connect(lanes: int) -> Any:
        pytest.fail("there is nobody to be asked")

    summary = await ResumedJob(services(here, beside), first, connect).run()
    assert (summary.outcome, summary.owner) == ("done", "destination")
    assert (await here.load("first")).outcome == "done"


@pytest.mark.parametrize(("stays", "outcome"), [(False, "done"), (True, "")])
async def test_a_job_is_over_once_nothing_is_left_here(stays: bool, outcome: str) -> None:
    journal = MemoryJournal()
    await journal.open_job(record("first", role="source", epoch=1, committed=True))
    all_of_it = services(journal)
    departure: Any = Leaving(stays=stays)
    after = Afterwards(
        all_of_it,
        Settings(),
        Meter("first", "source", all_of_it.hooks),
        Throttle(0),
        [],
        departure,
        job="first",
        token=b"",
        epoch=1,
        suspended=0.0,
    )
    await after._note_running()
    after.local = Local()
    await after.settle()
    assert (await journal.load("first")).outcome == outcome
