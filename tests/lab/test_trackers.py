"""Trackers below the real block backend, against a record of their own: the disk itself."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vmferry_lab import Host

MIB = 1 << 20
SCRIPT = Path(__file__).with_name("two_copies.py")


@pytest.fixture
def name(hosta: Host) -> Iterator[str]:
    name = f"tracked-{secrets.token_hex(3)}"
    hosta.put(SCRIPT, "/root/two_copies.py")
    yield name
    hosta.guests.destroy(name)
    hosta.guests.remove_disk(name)


def compared(host: Host, name: str, tracker: str, *more: int) -> dict[str, Any]:
    words = ["/opt/vmferry/bin/python", "/root/two_copies.py", name, tracker, *map(str, more)]
    return msgspec.json.decode(host.run(words, timeout=900), type=dict[str, Any])


@pytest.mark.parametrize("tracker", ["blkback", "dm-era"])
def test_what_the_tracker_says_makes_the_same_disk(hosta: Host, name: str, tracker: str) -> None:
    disk = hosta.guests.make_disk(name, 32 * MIB)
    hosta.guests.start(name, [disk], rate=60, lanes=4, partial=3, discard=10, flush=10)
    seen = compared(hosta, name, tracker, 30)
    assert seen["differing"] == 0, seen
    assert seen["harvests"] > 1, seen
    assert seen["copied"] > 33 * MIB, "nothing was written while it was tracked"
    assert not seen["everything"], "the tracker lost track of an ordinary load"
    verdict = hosta.guests.verdict(name)
    assert verdict.good, verdict


def test_more_long_discards_than_there_is_room_for_are_everything(hosta: Host, name: str) -> None:
    disk = hosta.guests.make_disk(name, 48 * MIB)
    hosta.guests.start(name, [disk], rate=20)
    seen = compared(hosta, name, "blkback", 1, 1100)
    assert seen["differing"] == 0, seen
    assert seen["everything"], seen
