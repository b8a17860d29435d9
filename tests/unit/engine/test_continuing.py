"""Which broken-off jobs can be gone on with, and what of them is remembered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vmferry.api.guest import Guest
from vmferry.api.hooks import Phase
from vmferry.engine.deciding import AtSource
from vmferry.engine.journal import JobRecord, MemoryJournal, unpacked
from vmferry.engine.policy import PolicyOptions
from vmferry.engine.recovering import KeptFacts
from vmferry.engine.resolving import Action, Known, Ruling, may_continue, rule_at_source
from vmferry.engine.resuming import _check
from vmferry.engine.settings import KeptSettings, Settings, with_policy
from vmferry.errors import InputError
from vmferry.wire.messages import Account

SETTINGS = Settings(lanes=7, bandwidth=1 << 20)
PUSHING = JobRecord(
    job="0123456789ab",
    role="source",
    guest="g",
    description=msgspec.msgpack.encode(Guest(name="g", hypervisor="h", memory=1, disks=())),
    facts=msgspec.msgpack.encode(SETTINGS),
    token=bytes(16),
    epoch=1,
)


def changed(**fields: Any) -> JobRecord:
    return msgspec.structs.replace(PUSHING, **fields)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (PUSHING, True),
        (changed(phase=Phase.PUSH_MEMORY), True),
        (changed(phase=Phase.STOP), False),
        (changed(phase=Phase.FAILED), False),
        (changed(committed=True), False),
        (changed(outcome="failed"), False),
        (changed(token=b""), False),
        (changed(facts=b""), False),
        (changed(role="destination"), False),
    ],
)
def test_only_a_job_in_push_may_be_gone_on_with(record: JobRecord, expected: bool) -> None:
    assert may_continue(record) is expected
    if expected:
        assert rule_at_source(record, Known()).action is Action.TAKE_BACK  # it may be given up


def test_the_policy_is_remembered_and_journals_without_one_can_be_read() -> None:
    policy = PolicyOptions(threshold=3, converge=True)
    kept = with_policy(SETTINGS, policy)
    record = changed(facts=msgspec.msgpack.encode(kept))
    assert unpacked(record, "facts", KeptSettings) == kept
    assert unpacked(record, "facts", Settings) == SETTINGS
    older = unpacked(PUSHING, "facts", KeptSettings)
    assert older == with_policy(SETTINGS, None)
    assert older.policy == PolicyOptions()


def test_a_destination_of_an_older_release_kept_nothing_for_a_source_that_comes_back() -> None:
    with pytest.raises(InputError):
        unpacked(changed(facts=b""), "facts", KeptFacts)
    assert not unpacked(changed(facts=msgspec.msgpack.encode({})), "facts", KeptFacts).reconnect


async def test_a_job_whose_command_gave_up_is_open_again_once_it_is_taken_back() -> None:
    journal = MemoryJournal()
    record = changed(committed=True, phase=Phase.FAILED, outcome="failed", error="lost")
    await journal.open_job(record)

    async def connect(lanes: int) -> Any:
        raise AssertionError("nobody is to be asked")

    case = AtSource(journal, record, connect)
    case.known = Known(Account(epoch=1, withdrawn=True), binding=True)
    settled = await case.settle(Ruling(Action.TAKE_BACK, "promised"))
    assert settled is not None
    assert not settled.committed
    _check(settled)
    assert not may_continue(settled)
