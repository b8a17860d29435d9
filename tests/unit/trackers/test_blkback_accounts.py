"""What the programs saw, held against the kernel's statistics of the device."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vmferry.dirtymap import DirtyMap
from vmferry_trackers.blkback import record as module
from vmferry_trackers.blkback.device import Kind
from vmferry_trackers.blkback.program import HEADER, SEEN
from vmferry_trackers.blkback.record import Record

SIZE, BLOCK = 1 << 20, 4096


class Device:
    """Statistics that a test sets."""

    def __init__(self, *, requests: bool) -> None:
        self.kind = Kind(requests=requests)
        self.written = self.under_way = 0
        self.starting = 0
        """Sectors of writes that begin while somebody looks."""

    def sectors_written(self) -> int:
        now, self.written = self.written, self.written + self.starting
        return now

    def writes_in_flight(self) -> int:
        return self.under_way


def tracked(monkeypatch: pytest.MonkeyPatch, *, requests: bool) -> tuple[Record, Device]:
    monkeypatch.setattr(module.kernel, "set_map", lambda array, inner: None)
    monkeypatch.setattr(module, "_ACCOUNTED", 0)
    record, device = Record.__new__(Record), Device(requests=requests)
    words = HEADER + SIZE // BLOCK // 64
    record._device, record._pending = device, DirtyMap(SIZE, BLOCK)  # type: ignore[assignment]
    record._marked, record._idle = (
        SimpleNamespace(fd=0, words=np.zeros(words, np.uint64))  # type: ignore[assignment]
        for _ in range(2)
    )
    record._current, record._unread, record._seen = 0, False, 0
    return record, device


def harvested(record: Record, seen: int) -> bool:
    """Whether everything is dirty after a harvest in which so many sectors were seen."""
    record._marked.words[SEEN] += np.uint64(seen)
    record.collect()
    return record.take().all(0, SIZE)


@pytest.mark.parametrize("requests", [True, False])
def test_what_was_not_seen_makes_everything_dirty_once(
    monkeypatch: pytest.MonkeyPatch, requests: bool
) -> None:
    record, device = tracked(monkeypatch, requests=requests)
    device.written = 16
    assert not harvested(record, 16)
    device.written = 32
    assert harvested(record, 8)
    assert not harvested(record, 0)


def test_what_is_counted_when_it_begins_is_not_missing_while_it_is_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, device = tracked(monkeypatch, requests=False)
    device.written, device.under_way = 24, 1
    assert not harvested(record, 16)
    device.under_way = 0
    assert not harvested(record, 8)


def test_what_was_missed_among_writes_in_flight_is_found_when_none_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, device = tracked(monkeypatch, requests=False)
    for _ in range(3):
        device.written, device.under_way = device.written + 24, 1
        assert not harvested(record, 16 if device.written == 24 else 24)
    device.under_way = 0
    assert harvested(record, 0), "8 sectors were never seen"


def test_a_write_that_begins_during_the_look_is_not_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, device = tracked(monkeypatch, requests=False)
    device.starting = 8
    assert not harvested(record, 0)


def test_what_was_seen_and_not_counted_does_not_outweigh_a_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, device = tracked(monkeypatch, requests=False)
    assert not harvested(record, 45)
    device.written = 45
    assert harvested(record, 0)
