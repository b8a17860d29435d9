"""A dirty map compared with a naive model: a set of block numbers."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vmferry.dirtymap import DirtyMap

CHUNK = 2**18
"""Blocks in a chunk: the borders where a chunked map may go wrong."""


class Model:
    """A dirty map's meaning, block by block, for small sets of blocks near chunk borders."""

    def __init__(self, size, block_size, dirty=()):
        self.size, self.block_size, self.dirty = size, block_size, set(dirty)
        self.blocks = -(-size // block_size)

    def extent(self, block):
        return block * self.block_size, min((block + 1) * self.block_size, self.size)

    def touched(self, offset, length):
        if not length:
            return set()
        return set(range(offset // self.block_size, (offset + length - 1) // self.block_size + 1))

    def inside(self, offset, length):
        end = offset + length
        return {
            block
            for block in self.touched(offset, length)
            if self.extent(block)[0] >= offset and self.extent(block)[1] <= end
        }

    def runs(self, start=0, stop=None, *, max_extent=None, merge_gap=0):
        stop = self.size if stop is None else stop
        window = self.touched(start, max(0, stop - start))
        found = merged(block_runs(self.dirty & window), merge_gap // self.block_size)
        limit = (max_extent or 2**60) // self.block_size
        pieces = [
            (low, min(low + limit, last))
            for first, last in found
            for low in range(first, last, limit)
        ]
        clipped = [
            (max(low * self.block_size, start), min(high * self.block_size, stop))
            for low, high in pieces
        ]
        return [(low, high - low) for low, high in clipped]


def block_runs(blocks):
    """``(first, stop)`` of each run in a set of numbers."""
    groups = groupby(enumerate(sorted(blocks)), lambda item: item[1] - item[0])
    runs = [[block for _, block in group] for _, group in groups]
    return [(run[0], run[-1] + 1) for run in runs]


def merged(runs, gap):
    joined = []
    for first, stop in runs:
        if joined and first - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((first, stop))
    return joined


def blocks_in(dirty):
    """The set of dirty blocks, by way of ``run_arrays``."""
    starts, counts = dirty.run_arrays()
    return {
        block
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
        for block in range(start, start + count)
    }


def from_blocks(size, block_size, blocks):
    """A map marked block by block."""
    dirty = DirtyMap(size, block_size)
    for block in blocks:
        low = block * block_size
        dirty.mark(low, min(block_size, size - low))
    return dirty


BLOCK = 512
geometries = st.sampled_from(
    [
        (1, BLOCK),
        (64 * BLOCK, BLOCK),
        (100 * BLOCK + 7, BLOCK),
        (CHUNK * BLOCK, BLOCK),
        (2 * CHUNK * BLOCK + 60 * BLOCK + 1, BLOCK),
        (3 * CHUNK * 4096, 4096),
    ]
)


@st.composite
def positions(draw, size, block_size):
    """A byte of the disk or its end, mostly near a chunk's border."""
    chunk = CHUNK * block_size
    base = draw(st.integers(0, size // chunk)) * chunk
    near = base + draw(st.integers(-40 * block_size, 40 * block_size))
    return min(max(near, 0), size)


@st.composite
def ranges(draw, size, block_size, longest=80):
    """``(offset, length)`` on the disk, of up to ``longest`` blocks."""
    offset = draw(positions(size, block_size))
    length = draw(st.integers(0, longest * block_size) | st.just(block_size))
    return offset, min(length, size - offset)


@st.composite
def block_sets(draw, size, block_size):
    """A set of blocks in a few runs."""
    found = set()
    for offset, length in draw(st.lists(ranges(size, block_size), max_size=8)):
        found |= Model(size, block_size).touched(offset, length)
    return found


@st.composite
def maps(draw, count=1):
    """A geometry and ``count`` sets of blocks with the maps of them, some with a full chunk."""
    size, block_size = draw(geometries)
    pairs = []
    for _ in range(count):
        blocks = draw(block_sets(size, block_size))
        pairs.append((blocks, from_blocks(size, block_size, blocks)))
    return Model(size, block_size), pairs


@given(maps(), st.data())
def test_runs_are_those_of_the_model(made, data):
    model, [(blocks, dirty)] = made
    model.dirty = blocks
    start = data.draw(positions(model.size, model.block_size))
    stop = data.draw(st.none() | positions(model.size, model.block_size))
    options = {
        "max_extent": data.draw(st.none() | st.integers(1, 20).map(lambda n: n * model.block_size)),
        "merge_gap": data.draw(st.integers(0, 10 * model.block_size)),
    }
    assert list(dirty.runs(start, stop, **options)) == model.runs(start, stop, **options)


@given(maps(), st.data())
def test_first_run_begins_the_rest_of_the_map(made, data):
    model, [(blocks, dirty)] = made
    model.dirty = blocks
    start = data.draw(positions(model.size, model.block_size))
    extent = data.draw(st.integers(1, 20)) * model.block_size
    expected = model.runs(start, max_extent=extent)
    assert dirty.first_run(start, max_extent=extent) == (expected[0] if expected else None)


@given(maps(), st.data())
def test_any_all_and_the_counts_are_those_of_the_model(made, data):
    model, [(blocks, dirty)] = made
    offset, length = data.draw(ranges(model.size, model.block_size))
    touched = model.touched(offset, length)
    assert dirty.any(offset, length) == bool(touched & blocks)
    assert dirty.all(offset, length) == (touched <= blocks)
    assert dirty.count() == len(blocks)
    assert bool(dirty) == bool(blocks)
    extents = [model.extent(block) for block in blocks]
    assert dirty.dirty_bytes() == sum(high - low for low, high in extents)


@given(maps(), st.data())
def test_the_next_block_is_looked_for_in_the_range_only(made, data):
    model, [(blocks, dirty)] = made
    offset, length = data.draw(ranges(model.size, model.block_size))
    touched = model.touched(offset, length)
    if touched:
        first, stop = min(touched), max(touched) + 1
        assert dirty._table.next_set(first, stop) == min(touched & blocks, default=stop)
        assert dirty._table.next_clear(first, stop) == min(touched - blocks, default=stop)


@given(maps(count=2))
def test_set_operations_are_those_of_sets(made):
    _, [(one, first), (two, second)] = made
    assert blocks_in(first | second) == one | two
    assert blocks_in(first - second) == one - two
    assert blocks_in(first & second) == one & two
    assert (first == second) == (one == two)
    assert blocks_in(first) == one
    assert blocks_in(second) == two


@settings(max_examples=15, deadline=None)
@given(maps(count=2), st.integers(0, 2), st.integers(0, 2))
def test_set_operations_with_full_chunks(made, mine, other):
    """Whole chunks dirtied on either side: compared near the borders, where blocks differ."""
    model, [(one, first), (two, second)] = made
    for chunk, blocks, dirty in ((mine, one, first), (other, two, second)):
        low = min(chunk * CHUNK * model.block_size, model.size)
        dirty.mark(low, min(CHUNK * model.block_size, model.size - low))
        blocks |= set(range(chunk * CHUNK, min((chunk + 1) * CHUNK, model.blocks)))
    for result, expected in (
        (first | second, one | two),
        (first - second, one - two),
        (first & second, one & two),
    ):
        assert runs_in(result) == block_runs(expected)
        assert result.count() == len(expected)
        assert bool(result) == bool(expected)


def runs_in(dirty):
    starts, counts = dirty.run_arrays()
    return list(zip(starts.tolist(), (starts + counts).tolist(), strict=True))


@given(st.data(), geometries)
def test_bulk_marking_is_marking_one_by_one(data, geometry):
    size, block_size = geometry
    runs = data.draw(st.lists(ranges(size, block_size), max_size=60))
    before = data.draw(st.lists(ranges(size, block_size), max_size=5))
    bulk, single = (DirtyMap.from_runs(size, block_size, before) for _ in range(2))
    bulk.mark_runs(np.array([run[0] for run in runs], int), [run[1] for run in runs])
    for offset, length in runs:
        single.mark(offset, length)
    assert bulk == single
    assert blocks_in(bulk) == set().union(
        *(Model(size, block_size).touched(*run) for run in runs + before)
    )


@pytest.mark.parametrize("shift", range(16))
@settings(max_examples=10)
@given(data=st.data())
def test_coarse_and_fine_blocks_cover_the_same_bytes(shift, data):
    size = data.draw(st.sampled_from([BLOCK * 2 * CHUNK + 1, BLOCK * 70_000, 3 * BLOCK]))
    blocks = data.draw(block_sets(size, BLOCK))
    coarse = from_blocks(size, BLOCK, blocks).coarsen(BLOCK << shift)
    assert coarse.block_size == BLOCK << shift
    assert blocks_in(coarse) == {block >> shift for block in blocks}
    fine = coarse.refine(BLOCK)
    assert list(fine.runs()) == list(coarse.runs())
    assert fine.coarsen(BLOCK << shift) == coarse


@given(maps())
def test_what_is_encoded_is_decoded(made):
    model, [(_, dirty)] = made
    wire = dirty.encode()
    assert DirtyMap.decode(wire, size=model.size, block_size=model.block_size) == dirty


class MapMachine(RuleBasedStateMachine):
    """Any sequence of changes, with a second map to combine with."""

    @initialize(geometry=geometries)
    def begin(self, geometry):
        self.size, self.block_size = geometry
        self.model = Model(*geometry)
        self.map, self.other = DirtyMap(*geometry), DirtyMap(*geometry)
        self.other_blocks = set()

    def draw_range(self, data):
        return data.draw(ranges(self.size, self.block_size))

    @rule(data=st.data())
    def mark(self, data):
        offset, length = self.draw_range(data)
        self.map.mark(offset, length)
        self.model.dirty |= self.model.touched(offset, length)

    @rule(data=st.data())
    def clear(self, data):
        offset, length = self.draw_range(data)
        self.map.clear(offset, length)
        self.model.dirty -= self.model.inside(offset, length)

    @rule(data=st.data())
    def mark_bulk(self, data):
        runs = data.draw(st.lists(ranges(self.size, self.block_size), max_size=5))
        self.map.mark_runs([run[0] for run in runs], [run[1] for run in runs])
        for run in runs:
            self.model.dirty |= self.model.touched(*run)

    @rule(data=st.data())
    def mark_all_but(self, data):
        """Everything dirty, then all cleared but a range: full chunks are split again."""
        offset, length = self.draw_range(data)
        self.map.mark_all()
        self.map.clear(0, offset)
        self.map.clear(offset + length, self.size - offset - length)
        kept = self.model.touched(offset, length)
        if not length and offset % self.block_size and offset != self.size:
            kept = {offset // self.block_size}
        self.model.dirty = kept

    @rule()
    def take(self):
        taken = self.map.take()
        assert not self.map
        assert blocks_in(taken) == self.model.dirty
        self.other, self.other_blocks, self.model.dirty = taken, self.model.dirty, set()

    @rule()
    def clear_all(self):
        self.map.clear_all()
        self.model.dirty = set()

    @rule()
    def update(self):
        self.map |= self.other
        self.model.dirty = self.model.dirty | self.other_blocks

    @rule()
    def difference_update(self):
        self.map -= self.other
        self.model.dirty = self.model.dirty - self.other_blocks

    @rule()
    def intersection_update(self):
        self.map &= self.other
        self.model.dirty = self.model.dirty & self.other_blocks

    @rule()
    def through_the_wire(self):
        wire = self.map.encode()
        self.map = DirtyMap.decode(wire, size=self.size, block_size=self.block_size)

    @invariant()
    def agree(self):
        if hasattr(self, "map"):
            assert blocks_in(self.map) == self.model.dirty
            assert self.map.count() == len(self.model.dirty)
            assert bool(self.map) == bool(self.model.dirty)
            assert list(self.map.runs()) == self.model.runs()
            assert blocks_in(self.other) == self.other_blocks


TestMapMachine = pytest.mark.thorough(MapMachine.TestCase)
TestMapMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
