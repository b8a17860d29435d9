from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.dirtymap import DirtyMap
from vmferry.units import GIB, MIB, TIB
from vmferry_trackers.blkback.program import HEADER, LONG_RANGES, LOST, RANGES
from vmferry_trackers.blkback.record import absorb, fitting_block_size, map_words

BLOCK = 4096


def words_with(size, blocks=(), ranges=(), count=None):
    words = np.zeros(map_words(size, BLOCK), "<u8")
    for block in blocks:
        words[HEADER + block // 64] |= np.uint64(1 << block % 64)
    for number, (first, many) in enumerate(ranges):
        words[2 + 2 * number], words[3 + 2 * number] = first, many
    words[RANGES] = len(ranges) if count is None else count
    return words


@settings(deadline=None)
@given(blocks=st.sets(st.integers(0, 600_000)), tail=st.integers(1, BLOCK))
def test_bits_become_blocks(blocks, tail):
    size = BLOCK * 600_000 + tail
    words = words_with(size, blocks)
    into = DirtyMap(size, BLOCK)
    absorb(words, into)
    starts, counts = into.run_arrays()
    found = {b for s, n in zip(starts, counts, strict=True) for b in range(s, s + n)}
    assert found == blocks
    assert not words.any()


def test_long_ranges_are_added_to_the_bits():
    size = 100_000 * BLOCK + 512
    into = DirtyMap(size, BLOCK)
    into.mark(0, 1)
    absorb(words_with(size, {50_000}, [(90_000, 10_001), (7, 3)]), into)
    assert list(into.runs()) == [
        (0, BLOCK),
        (7 * BLOCK, 3 * BLOCK),
        (50_000 * BLOCK, BLOCK),
        (90_000 * BLOCK, 10_000 * BLOCK + 512),
    ]


@pytest.mark.parametrize(("lost", "count"), [(1, 0), (0, LONG_RANGES + 1)])
def test_lost_track_is_everything(lost, count):
    size = 1000 * BLOCK
    words = words_with(size, count=count)
    words[LOST] = lost
    into = DirtyMap(size, BLOCK)
    absorb(words, into)
    assert into.count() == 1000
    assert not words.any()


def test_full_list_is_not_lost():
    size = 1000 * BLOCK
    into = DirtyMap(size, BLOCK)
    absorb(words_with(size, ranges=[(5, 1)] * LONG_RANGES), into)
    assert into.count() == 1


@pytest.mark.parametrize(
    ("size", "asked", "memory", "used"),
    [
        (TIB, 4096, 256 * MIB, 4096),
        (4 * TIB, 4096, 256 * MIB, 4096),
        (4 * TIB + 512, 4096, 256 * MIB, 8192),
        (64 * TIB, 4096, 256 * MIB, 64 * 1024),
        (64 * TIB, 4096, 8 * GIB, 4096),
        (10 * MIB, 65536, MIB, 65536),
    ],
)
def test_blocks_grow_until_the_bitmaps_fit(size, asked, memory, used):
    assert fitting_block_size(size, asked, memory) == used
    assert 16 * (map_words(size, used) - HEADER) <= memory
