"""What both ends say becomes phases, rounds, series and figures."""

from __future__ import annotations

from typing import Any

import pytest

from vmferry.experiments.listening import Listener
from vmferry.experiments.results import Result

_SUMMARY = {"bitmap_bytes": 40, "pending": 100, "on_demand": 0, "downtime": 0.2}


def said(second: float, event: str, **facts: Any) -> dict[str, Any]:
    return {"event": event, "time": f"2026-01-02T03:04:{second:06.3f}Z", "job": "j"} | facts


def progress(second: float, what: str, done: int, total: int, number: int) -> dict[str, Any]:
    facts = {"what": what, "done": done, "total": total, "round": number, "phase": "push-disk"}
    return said(second, "progress", **facts)


def test_a_migration_is_told() -> None:
    listener = Listener(Result())
    hear = listener.source
    for second, phase in [(1, "handshake"), (1.5, "push-disk"), (3, "stop"), (3.2, "pull")]:
        hear(said(second, "phase_changed", role="source", phase=phase))
    hear(progress(2.0, "disk0", 400, 1000, 0))
    hear(progress(2.5, "disk0", 1000, 1000, 0))
    hear(progress(2.75, "disk0", 50, 200, 1))
    report = {"number": 0, "scanned": 1000, "sent": 900, "zeroes": 0, "seconds": 1, "dirty": 200}
    hear(said(2.6, "round_finished", memory=False, **report))
    hear(said(2.9, "event", name="ruling", facts={"decision": "switch"}))
    listener.destination(said(3.5, "finished", downtime=0.25, guest_downtime=0.3, phases={}))
    hear(said(4, "phase_changed", role="source", phase="done"))
    phases = {"handshake": 0.5, "push-disk": 1.4, "stop": 0.2, "pull": 0.8}
    hear(said(4, "finished", phases=phases, guest_downtime=None, sent=5, **_SUMMARY))
    listener.conclude()
    result = listener.result
    named = [(one.name, round(one.begin, 3), one.seconds) for one in result.phases]
    assert named == [
        ("handshake", 0, 0.5),
        ("push-disk", 0.5, 1.4),
        ("stop", 2, 0.2),
        ("pull", 2.2, 0.8),
    ]
    assert result.series["moved"].values == [400, 1000, 1050]
    assert result.series["pending"].values == [600, 0, 150]
    assert result.series["moved"].times == pytest.approx([1.0, 1.5, 1.75])
    assert [one.number for one in result.rounds] == [0]
    assert [one.name for one in result.events] == ["ruling"]
    assert result.figures == {
        "total": pytest.approx(2.9),
        "downtime_source": 0.2,
        "downtime_destination": 0.25,
        "downtime_guest": 0.3,
        "sent": 5,
        "bitmap_bytes": 40,
        "pending": 100,
        "on_demand": 0,
    }


def heard(*told: dict[str, Any]) -> Result:
    """What the source makes of a migration whose events these are."""
    listener = Listener(Result())
    for event in told:
        listener.source(event)
    listener.conclude()
    return listener.result


def test_memory_that_is_sent_again_counts_by_what_is_sent_of_it() -> None:
    result = heard(
        progress(1, "memory", 300, 1000, 0),
        progress(2, "memory", 1000, 1000, 0),
        progress(3, "memory", 900, 1000, 1),
        progress(4, "memory", 1000, 1000, 1),
        progress(5, "memory", 990, 1000, 2),
    )
    assert result.series["moved"].values == [300, 1000, 1000, 1100, 1100]
    assert result.series["pending"].values == [700, 0, 100, 0, 10]


def test_memory_and_the_disks_beside_it_are_pending_together() -> None:
    result = heard(
        progress(1, "memory", 300, 1000, 0),
        progress(2, "disk0", 50, 200, 4),
        progress(3, "memory", 400, 1000, 1),
        progress(4, "disk0", 200, 200, 4),
        progress(5, "disk0", 20, 60, 5),
    )
    assert result.series["pending"].values == [700, 850, 750, 600, 640]
    assert result.series["moved"].values == [300, 350, 450, 600, 620]


def test_what_an_earlier_phase_had_is_not_pending_any_more() -> None:
    result = heard(
        progress(1, "disk0", 900, 1000, 0),
        said(2, "phase_changed", role="source", phase="pull"),
        progress(3, "pull", 30, 100, -1),
        said(4, "phase_changed", role="source", phase="push-memory"),
        progress(5, "memory", 10, 50, 0),
        said(6, "phase_changed", role="source", phase="push-memory"),
        progress(7, "memory", 20, 50, 0),
    )
    assert result.series["pending"].values == [100, 70, 40, 30]
    assert result.series["moved"].values == [900, 930, 940, 960]


def test_a_migration_that_broke_off_is_told_as_far_as_it_went() -> None:
    listener = Listener(Result())
    listener.source(said(1, "phase_changed", role="source", phase="handshake"))
    listener.source(said(2, "phase_changed", role="source", phase="push-disk"))
    listener.source(said(5, "phase_changed", role="source", phase="failed"))
    listener.conclude()
    assert [(one.name, one.seconds) for one in listener.result.phases] == [
        ("handshake", 1),
        ("push-disk", 3),
    ]
    assert listener.result.figures["total"] is None


def test_nothing_said_is_no_error() -> None:
    listener = Listener(Result())
    listener.conclude()
    assert listener.result.phases == []
