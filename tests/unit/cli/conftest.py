from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from vmferry.api import Phase, Progress, RoundReport, Summary
from vmferry.plugins import Hooks

MIB = 1 << 20
ROUNDS = (
    RoundReport(
        number=0, scanned=64 * MIB, sent=40 * MIB, zeroes=8 * MIB, seconds=2.0, dirty=4 * MIB
    ),
    RoundReport(
        number=1, scanned=4 * MIB, sent=3 * MIB, zeroes=0, seconds=0.5, dirty=MIB, memory=True
    ),
)
SUMMARY = Summary(
    job="job7",
    role="source",
    guest="web [1]",
    outcome="done",
    owner="destination",
    phases={"push-disk": 2.5, "stop": 0.04},
    downtime=0.042,
    guest_downtime=0.05,
    rounds=ROUNDS,
    sent=43 * MIB,
    bitmap_bytes=2048,
    pending=MIB,
    on_demand=17,
    counters={"reconnects": 2},
)


def _play(hooks: Hooks) -> None:
    hooks.phase_changed("job7", "source", Phase.PUSH_DISK)
    for done in (16, 64):
        step = Progress(
            phase=Phase.PUSH_DISK,
            what="disk0",
            done=done * MIB,
            total=64 * MIB,
            rate=32.0 * MIB,
            round=0,
        )
        hooks.progress("job7", step)
    hooks.round_finished("job7", ROUNDS[0])
    hooks.event("job7", "reconnect", peer="tcp://b:7420", attempt=2)
    hooks.round_finished("job7", ROUNDS[1])
    hooks.phase_changed("job7", "source", Phase.PULL)
    waiting = Progress(
        phase=Phase.PULL, what="disk0", done=0, total=MIB, rate=0, note="waiting for the source"
    )
    hooks.progress("job7", waiting)
    hooks.finished(SUMMARY)


@pytest.fixture
def play() -> Callable[[Hooks], None]:
    """Events of a short migration."""
    return _play


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    logger = logging.getLogger()
    level, handlers = logger.level, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)
