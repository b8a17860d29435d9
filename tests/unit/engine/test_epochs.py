"""The number of the agreement on who owns a guest, as one host knows it from both its roles."""

from __future__ import annotations

import random
from typing import Any, cast

import msgspec
import pytest

from vmferry.api.findings import Severity
from vmferry.api.guest import Guest
from vmferry.engine.context import InlineWorkers
from vmferry.engine.epochs import check_not_handed_over, known_epoch, last_change
from vmferry.engine.journal import JobRecord, MemoryJournal
from vmferry.engine.services import Services
from vmferry.plugins import Hooks

UUID = "6c8f1b0e-7d8e-4a54-9a4f-1f6c0c1f7c11"


def guest(uuid: str = UUID) -> Guest:
    return Guest(name="web", uuid=uuid, hypervisor="process")


def job(name: str, epoch: int, **fields: Any) -> JobRecord:
    description = msgspec.msgpack.encode(fields.pop("guest", guest()))
    values = {"role": "source", "guest": "web", "peer": "host2", **fields}
    return JobRecord(job=name, epoch=epoch, description=description, **values)


@pytest.fixture
def services() -> Services:
    return Services(
        registry=cast(Any, None),
        hooks=Hooks(),
        workers=InlineWorkers(),
        journal=MemoryJournal(),
        beside=MemoryJournal(),
        random=random.Random(0),
    )


async def given(services: Services, *records: JobRecord) -> None:
    assert services.beside is not None
    for record in records:
        journal = services.journal if record.role == "source" else services.beside
        await journal.open_job(record)


async def test_both_roles_of_a_host_count(services: Services) -> None:
    assert await known_epoch(services, "web") == 0
    await given(services, job("a", 3), job("b", 4, role="destination"))
    assert await known_epoch(services, "web") == 4
    assert await known_epoch(services, "db") == 0


async def test_only_jobs_that_moved_the_guest_are_changes(services: Services) -> None:
    await given(
        services,
        job("left", 1, committed=True),
        job("came", 2, role="destination", owner=True),
        job("broken-off", 3),
        job("withdrawn", 4, role="destination", withdrawn=True),
    )
    last = await last_change(services, "web")
    assert last is not None
    assert last.job == "came"
    assert await last_change(services, "web", above=2) is None


@pytest.mark.parametrize(
    ("uuid", "severity"), [(UUID, Severity.ERROR), ("", Severity.WARNING), (UUID[::-1], None)]
)
async def test_a_guest_that_was_handed_over_is_not_moved_from_here_again(
    services: Services, uuid: str, severity: Severity | None
) -> None:
    await given(services, job("left", 5, committed=True))
    findings = await check_not_handed_over(services, guest(uuid))
    assert [one.severity for one in findings] == ([severity] if severity else [])
    if findings:
        assert "handed over to host2 (job left, epoch 5)" in findings[0].text
        assert "--forget" in findings[0].remedy


async def test_a_guest_that_came_back_may_leave(services: Services) -> None:
    await given(
        services,
        job("left", 5, committed=True),
        job("came", 6, role="destination", owner=True),
    )
    assert await check_not_handed_over(services, guest()) == []
