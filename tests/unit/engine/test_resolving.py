"""Who has the guest: every state of the two journals, and what follows."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from vmferry.api import Phase
from vmferry.engine.journal import JobRecord
from vmferry.engine.resolving import Action, Known, rule_at_destination, rule_at_source
from vmferry.wire.messages import Account

HERE = JobRecord(job="a1", role="source", guest="web", peer="tcp://b:1", epoch=1, phase=Phase.STOP)
COMMITTED = msgspec.structs.replace(HERE, committed=True)
PULLING = msgspec.structs.replace(COMMITTED, phase=Phase.PULL)
THERE = JobRecord(job="a1", role="destination", guest="web", epoch=1, phase=Phase.STOP)


def there(**fields: Any) -> JobRecord:
    return msgspec.structs.replace(THERE, **fields)


def account(**fields: bool) -> Account:
    return Account(epoch=1, phase="stop", ready=True, **fields)


@pytest.mark.parametrize(
    ("record", "known", "action"),
    [
        (HERE, Known(), Action.TAKE_BACK),
        (msgspec.structs.replace(HERE, outcome="failed"), Known(), Action.NOTHING),
        (msgspec.structs.replace(PULLING, outcome="done"), Known(), Action.NOTHING),
        (COMMITTED, Known(), Action.REFUSE),
        (COMMITTED, Known(fenced=True), Action.TAKE_BACK),
        (PULLING, Known(), Action.REFUSE),
        (PULLING, Known(fenced=True), Action.CLOSE),
        (COMMITTED, Known(account(withdrawn=True), binding=True), Action.TAKE_BACK),
        (COMMITTED, Known(account(withdrawn=True)), Action.TAKE_BACK),
        (COMMITTED, Known(account(paused=True), binding=True), Action.GO_ON),
        (COMMITTED, Known(account(owner=True, started=True), binding=True), Action.GO_ON),
        (COMMITTED, Known(account(owner=True, started=True), fenced=True), Action.GO_ON),
        (COMMITTED, Known(account(owner=True), binding=True), Action.REFUSE),
        (COMMITTED, Known(account(owner=True), fenced=True), Action.TAKE_BACK),
        (COMMITTED, Known(account(), binding=True), Action.TAKE_BACK),
        (COMMITTED, Known(account()), Action.REFUSE),
        (COMMITTED, Known(account(), fenced=True), Action.TAKE_BACK),
    ],
)
def test_what_follows_at_the_source(record: JobRecord, known: Known, action: Action) -> None:
    ruling = rule_at_source(record, known)
    assert ruling.action is action
    assert ruling.reason
    assert bool(ruling.ensure) == (action is Action.REFUSE)


@pytest.mark.parametrize(
    ("record", "source", "fenced", "held", "action"),
    [
        (there(phase=Phase.PUSH_DISK), None, False, True, Action.DROP),
        (there(withdrawn=True), COMMITTED, True, True, Action.NOTHING),
        (there(outcome="done", owner=True), None, False, False, Action.NOTHING),
        (there(owner=True), None, False, False, Action.OWN),
        (THERE, None, False, True, Action.REFUSE),
        (THERE, HERE, False, True, Action.DROP),
        (THERE, COMMITTED, False, True, Action.OWN),
        (THERE, COMMITTED, False, False, Action.REFUSE),
        (THERE, None, True, True, Action.OWN),
        (THERE, None, True, False, Action.REFUSE),
    ],
)
def test_what_follows_at_the_destination(
    record: JobRecord, source: JobRecord | None, fenced: bool, held: bool, action: Action
) -> None:
    ruling = rule_at_destination(record, source, fenced=fenced, held=held)
    assert ruling.action is action
    assert bool(ruling.ensure) == (action is Action.REFUSE)


def test_without_a_fence_both_hosts_never_take_the_guest() -> None:
    """Whatever the two journals say, and whoever is asked first, with or without an agent."""
    flags = [
        (owner, gone) for owner, gone in itertools.product((0, 1), repeat=2) if owner + gone < 2
    ]
    for committed, (owner, withdrawn), started, held in itertools.product(
        (False, True), flags, (False, True), (False, True)
    ):
        mine = msgspec.structs.replace(HERE, committed=committed)
        theirs = there(owner=bool(owner), withdrawn=bool(withdrawn))
        told = account(
            owner=bool(owner),
            withdrawn=bool(withdrawn),
            started=started and bool(owner),
            paused=held and not owner and not withdrawn,
        )
        if owner and not committed:
            continue  # nothing that the protocol allows
        here = rule_at_source(mine, Known(told, binding=True)).action
        over = rule_at_destination(theirs, mine, fenced=False, held=told.paused).action
        assert not (here is Action.TAKE_BACK and over is Action.OWN)
