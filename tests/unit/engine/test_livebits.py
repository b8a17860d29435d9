"""What became local since the map was saved, over memory that outlives a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.dirtymap import DirtyMap
from vmferry.engine import scratch
from vmferry.engine.journal import DiskRecord, JobRecord, MemoryJournal
from vmferry.engine.journal_sqlite import SqliteJournal
from vmferry.engine.livebits import LiveBits

SIZE, BLOCK = 1000 * 4096 + 512, 4096
JOB = JobRecord(
    job="a1", role="destination", disks=(DiskRecord(name="d", size=SIZE, block_size=1),)
)


def whole(first: int, count: int) -> tuple[int, int]:
    return first * BLOCK, min(count * BLOCK, SIZE - first * BLOCK)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 40)), max_size=20))
def test_what_became_local_is_no_longer_pending(ranges: list[tuple[int, int]]) -> None:
    bits = LiveBits(memoryview(bytearray(LiveBits.size_for(SIZE, BLOCK))), SIZE, BLOCK)
    expected = DirtyMap.full(SIZE, BLOCK)
    for first, count in ranges:
        bits.became_local(*whole(first, count))
        expected.clear(*whole(first, count))
    assert bits.without(DirtyMap.full(SIZE, BLOCK)) == expected


def test_the_bits_are_in_the_buffer_at_once() -> None:
    buffer = bytearray(LiveBits.size_for(SIZE, BLOCK))
    LiveBits(memoryview(buffer), SIZE, BLOCK).became_local(0, 3 * BLOCK)
    again = LiveBits(memoryview(buffer), SIZE, BLOCK)
    assert (
        DirtyMap.full(SIZE, BLOCK).count() - again.without(DirtyMap.full(SIZE, BLOCK)).count() == 3
    )


def test_scratch_is_there_again_until_the_host_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch.map_scratch(tmp_path / "s", "a1", "d", 100)[7] = 9
    assert scratch.map_scratch(tmp_path / "s", "a1", "d", 100)[7] == 9
    assert scratch.map_scratch(tmp_path / "s", "a1", "e", 100)[7] == 0
    (tmp_path / "boot").write_text("another start\n")
    monkeypatch.setattr(scratch, "_BOOT_ID", tmp_path / "boot")
    assert scratch.map_scratch(tmp_path / "s", "a1", "d", 100)[7] == 0


def test_scratch_of_another_size_is_begun_anew(tmp_path: Path) -> None:
    scratch.map_scratch(tmp_path / "s", "a1", "d", 100)[7] = 9
    assert bytes(scratch.map_scratch(tmp_path / "s", "a1", "d", 101)) == bytes(101)


def test_scratch_is_for_its_owner_alone(tmp_path: Path) -> None:
    scratch.map_scratch(tmp_path / "s", "a1", "d", 100)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "s" / "a1-d").stat().st_mode & 0o777 == 0o600


async def test_the_journal_drops_it_with_the_outcome(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "journal") as journal:
        await journal.open_job(JOB)
        (await journal.scratch("a1", "d", 10))[0] = 1
        await journal.update("a1", owner=True)
        assert (await journal.scratch("a1", "d", 10))[0] == 1
        await journal.update("a1", outcome="done")
        assert (await journal.scratch("a1", "d", 10))[0] == 0
        await journal.forget("a1")
        assert not list((tmp_path / "journal.scratch").iterdir())


async def test_in_a_simulation_it_survives_the_agent_but_not_the_host() -> None:
    journal = MemoryJournal(lambda: 0.0)
    (await journal.scratch("a1", "d", 10))[0] = 1
    assert (await journal.crash().scratch("a1", "d", 10))[0] == 1
    assert (await journal.crash(host=True).scratch("a1", "d", 10))[0] == 0


def test_what_is_released_holds_no_descriptor(tmp_path: Path) -> None:
    def mapped() -> bool:
        return any(
            str(tmp_path) in os.readlink(entry)
            for entry in Path("/proc/self/fd").iterdir()
            if entry.is_symlink()
        )

    size = LiveBits.size_for(SIZE, BLOCK)
    bits = LiveBits(scratch.map_scratch(tmp_path / "s", "a1", "d", size), SIZE, BLOCK)
    assert mapped()
    bits.release()
    assert not mapped()
    bits.became_local(0, BLOCK)
