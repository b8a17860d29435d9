"""What a link takes, and whether a receiver waits, as a stream's sender sees it."""

from __future__ import annotations

import pytest

from vmferry.units import MIB
from vmferry.wire.flow import Flow


def go(flow: Flow, *, seconds: float, blocked: float, payload: int = MIB, pieces: int = 30) -> None:
    for _ in range(pieces):
        flow.went(MIB, payload, elapsed=seconds, packing=0.0, blocked=blocked)


def test_a_link_that_is_waited_for_shows_what_it_takes() -> None:
    flow = Flow()
    go(flow, seconds=0.1, blocked=0.09)
    assert flow.capacity == pytest.approx(10 * MIB)
    go(flow, seconds=0.1, blocked=0.09, payload=MIB // 2)
    assert flow.capacity == pytest.approx(5 * MIB, rel=0.01)


def test_the_first_pieces_show_nothing_yet() -> None:
    flow = Flow()
    go(flow, seconds=0.1, blocked=0.09, pieces=3)
    assert flow.capacity == 0
    go(flow, seconds=0.1, blocked=0.09, pieces=1)
    assert flow.capacity > 0


def test_a_link_that_is_not_waited_for_takes_at_least_what_it_did_and_hopefully_more() -> None:
    flow = Flow()
    go(flow, seconds=0.1, blocked=0.09)
    go(flow, seconds=0.1, blocked=0.01, payload=MIB // 4)
    before = flow.capacity
    assert 2.5 * MIB < before < 15 * MIB
    go(flow, seconds=0.1, blocked=0.01, payload=MIB // 4, pieces=200)
    assert flow.capacity > 5 * before


def test_what_a_piece_takes_besides() -> None:
    flow = Flow()
    assert flow.besides == 0
    for _ in range(10):
        flow.went(MIB, MIB, elapsed=0.5, packing=0.2, blocked=0.1)
    assert flow.besides == pytest.approx(0.2 / MIB)


def test_no_time_at_all_is_no_rate() -> None:
    flow = Flow()
    go(flow, seconds=0.0, blocked=0.0)
    assert flow.capacity == 0


def test_a_receiver_starves_or_is_sated_or_neither() -> None:
    flow = Flow()
    assert flow.sated
    seen = []
    for idle in (100, 35, 0):
        for _ in range(40):
            flow.heard(idle)
        seen.append((flow.starving, flow.sated))
    assert seen == [(True, False), (False, False), (False, True)]
