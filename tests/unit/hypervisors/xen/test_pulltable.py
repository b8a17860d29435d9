"""Every sector of a pull disk is mapped once, the pending ones through the export."""

import random

import pytest

from vmferry.dirtymap import DirtyMap
from vmferry_hypervisors.xen.pulltable import local_table, pull_table
from vmferry_support.dm import SECTOR, Segment, linear

KIB = 1024


def owners(table: list[Segment]) -> list[str]:
    """The device of each sector, with all that a table must keep to checked on the way."""
    mapped: list[str] = []
    for segment in table:
        assert segment.start == len(mapped)
        assert segment.length > 0
        device, offset = segment.arguments.split()
        assert int(offset) == segment.start
        mapped += [device] * segment.length
    return mapped


def test_a_clean_disk_is_one_segment() -> None:
    clean = DirtyMap(1 << 20, 4096)
    assert pull_table(clean, "L", "E", 9) == local_table(1 << 20, "L") == [linear(0, 2048, "L", 0)]


def test_pending_blocks_go_to_the_export_and_the_rest_does_not() -> None:
    pending = DirtyMap.from_runs(1 << 20, 4096, [(0, 4096), (8192, 8192), ((1 << 20) - 1, 1)])
    assert pull_table(pending, "L", "E", 99) == [
        linear(0, 8, "E", 0),
        linear(8, 8, "L", 8),
        linear(16, 16, "E", 16),
        linear(32, 2008, "L", 32),
        linear(2040, 8, "E", 2040),
    ]


def test_a_disk_that_ends_within_a_block_is_mapped_to_its_last_sector() -> None:
    size = 64 * KIB + 512
    pending = DirtyMap.from_runs(size, 4096, [(64 * KIB, 512)])
    assert pull_table(pending, "L", "E", 9) == [linear(0, 128, "L", 0), linear(128, 1, "E", 128)]


@pytest.mark.parametrize("most", [3, 4, 5, 17, 64])
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_is_kept_and_only_clean_blocks_change_sides(most: int, seed: int) -> None:
    chance = random.Random(seed)
    size = 256 * 4096
    runs = [(chance.randrange(256) * 4096, 4096) for _ in range(chance.choice([1, 40, 200]))]
    pending = DirtyMap.from_runs(size, 4096, runs)
    table = pull_table(pending, "L", "E", most)
    assert len(table) <= most
    mapped = owners(table)
    assert len(mapped) == size // SECTOR
    for offset, length in pending.runs():
        for sector in range(offset // SECTOR, (offset + length) // SECTOR):
            assert mapped[sector] == "E"


def test_the_nearest_ranges_are_merged_first() -> None:
    pending = DirtyMap.from_runs(1 << 20, 4096, [(0, 4096), (8192, 4096), (500 * KIB, 4096)])
    table = pull_table(pending, "L", "E", 5)
    exported = [(each.start, each.length) for each in table if each.arguments.startswith("E")]
    assert exported == [(0, 24), (1000, 8)]
