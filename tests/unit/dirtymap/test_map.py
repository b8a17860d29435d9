import itertools
import tracemalloc

import numpy as np
import pytest

from vmferry.dirtymap import DirtyMap
from vmferry.units import GIB, KIB, MIB, TIB

CHUNK = 2**18
BAD_RANGES = [(-1, 1), (0, -1), (0, 10_001), (10_000, 1), (10_001, 0), (2**60, 2**60)]


@pytest.mark.parametrize("method", ["mark", "clear", "any", "all"])
@pytest.mark.parametrize(("offset", "length"), BAD_RANGES)
def test_a_range_off_the_disk_is_refused_and_named(method, offset, length):
    dirty = DirtyMap(10_000, 512)
    with pytest.raises(ValueError, match=f"{length} bytes at {offset} are not on a disk of 10000"):
        getattr(dirty, method)(offset, length)
    assert not dirty


@pytest.mark.parametrize(("offset", "length"), BAD_RANGES)
def test_one_bad_run_among_many_marks_nothing(offset, length):
    dirty = DirtyMap(10_000, 512)
    with pytest.raises(ValueError, match="not on a disk of 10000 bytes"):
        dirty.mark_runs([0, offset, 512], [1, length, 1])
    assert not dirty


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [([0, 1], [1]), ([0.5], [1]), ([[0]], [[1]]), (["0"], [1]), ([2**70], [1])],
)
def test_bulk_input_that_is_not_whole_numbers_in_pairs_is_refused(offsets, lengths):
    with pytest.raises(ValueError, match=r"come with|not whole numbers"):
        DirtyMap(10_000, 512).mark_runs(offsets, lengths)


def test_huge_unsigned_offsets_do_not_wrap_onto_the_disk():
    offsets = np.array([2**64 - 512], np.uint64)
    with pytest.raises(ValueError, match="not on a disk"):
        DirtyMap(10_000, 512).mark_runs(offsets, np.array([1024], np.uint64))


def test_nothing_is_marked_or_dirty_in_no_bytes():
    dirty = DirtyMap.full(10_000, 512)
    assert not dirty.any(5000, 0)
    assert dirty.all(5000, 0)
    empty = DirtyMap(10_000, 512)
    empty.mark(5000, 0)
    empty.mark(10_000, 0)
    assert not empty
    assert empty.all(5000, 0)


def test_clearing_spares_blocks_that_are_only_touched():
    dirty = DirtyMap.full(10_000, 512)
    dirty.clear(100, 9_900)
    assert list(dirty.runs()) == [(0, 512)]
    dirty.clear(0, 511)
    assert dirty.any(0, 1)


def test_the_partial_last_block_counts_what_it_has():
    dirty = DirtyMap.full(10_000, 4096)
    assert dirty.dirty_bytes() == 10_000
    dirty.clear(8192, 1807)
    assert dirty.dirty_bytes() == 10_000
    dirty.clear(8192, 1808)
    assert dirty.dirty_bytes() == 8192


def test_take_leaves_the_map_clean_and_apart():
    dirty = DirtyMap.from_runs(GIB, 4096, [(0, 4096), (MIB, 5000)])
    before = dirty.copy()
    taken = dirty.take()
    assert taken == before
    assert not dirty
    dirty.mark(8192, 1)
    assert taken == before
    taken.mark(12_288, 1)
    assert list(dirty.runs()) == [(8192, 4096)]


def test_a_copy_is_independent_in_both_directions():
    dirty = DirtyMap.from_runs(GIB, 4096, [(0, 4096)])
    twin = dirty.copy()
    dirty.mark(8192, 1)
    twin.clear(0, 4096)
    assert list(dirty.runs()) == [(0, 4096), (8192, 4096)]
    assert not twin


def test_union_does_not_share_chunks_with_its_parts():
    one, two = DirtyMap(GIB, 4096), DirtyMap.from_runs(GIB, 4096, [(0, 1)])
    both = one | two
    one |= two
    both.mark(MIB, 1)
    one.mark(2 * MIB, 1)
    assert list(two.runs()) == [(0, 4096)]


def test_intersection_does_not_share_chunks_with_its_parts():
    one, two = DirtyMap.full(GIB, 4096), DirtyMap.from_runs(GIB, 4096, [(0, 1)])
    one &= two
    one.mark(MIB, 1)
    assert list(two.runs()) == [(0, 4096)]


@pytest.mark.parametrize("count", [5, 500])
def test_bulk_marks_add_to_what_a_chunk_has(count):
    offsets = np.arange(count) * 8192
    lengths = np.full(count, 4096)
    dirty = DirtyMap.from_runs(16 * GIB, 4096, [(100 * MIB, 4096)])
    dirty.mark_runs(offsets, lengths)
    assert dirty.count() == count + 1
    dirty = DirtyMap.full(16 * GIB, 4096)
    dirty.mark_runs(offsets, lengths)
    assert dirty == DirtyMap.full(16 * GIB, 4096)


@pytest.mark.parametrize("other", [DirtyMap(GIB, 8192), DirtyMap(GIB + 1, 4096)])
@pytest.mark.parametrize(
    "operation", ["__or__", "__sub__", "__and__", "__ior__", "__isub__", "__iand__"]
)
def test_maps_of_other_geometry_do_not_combine(operation, other):
    dirty = DirtyMap(GIB, 4096)
    with pytest.raises(ValueError, match=f"{other.size} bytes in blocks of {other.block_size}"):
        getattr(dirty, operation)(other)
    assert dirty != other


def test_a_map_combines_with_itself():
    dirty = DirtyMap.from_runs(TIB, 4096, [(0, 4096), (2 * GIB, 3 * GIB)])
    before = dirty.copy()
    dirty |= dirty
    dirty &= dirty
    assert dirty == before
    dirty -= dirty
    assert not dirty


def test_equality_does_not_depend_on_how_it_came_about():
    piecewise = DirtyMap(3 * CHUNK * 512 + 5, 512)
    for offset in range(0, piecewise.size, MIB):
        piecewise.mark(offset, min(MIB, piecewise.size - offset))
    whole = DirtyMap.full(piecewise.size, 512)
    assert piecewise == whole
    assert whole == piecewise
    piecewise.clear(CHUNK * 512, 512)
    assert piecewise != whole
    assert whole != 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(whole)


def test_scaling_the_wrong_way_is_refused():
    dirty = DirtyMap(GIB, 4096)
    with pytest.raises(ValueError, match="2048 is less than the block size, 4096"):
        dirty.coarsen(2048)
    with pytest.raises(ValueError, match="8192 is more than the block size, 4096"):
        dirty.refine(8192)


def test_the_end_of_the_disk_bounds_finer_blocks():
    fine = DirtyMap.from_runs(10_000, 8192, [(8192, 1)]).refine(512)
    assert fine.count() == 4
    assert fine.dirty_bytes() == 10_000 - 8192


def test_scaling_full_chunks():
    dirty = DirtyMap.full(TIB + 5000, 4096)
    assert dirty.coarsen(MIB) == DirtyMap.full(TIB + 5000, MIB)
    assert dirty.coarsen(MIB).refine(512) == DirtyMap.full(TIB + 5000, 512)


@pytest.mark.parametrize("extent", [0, -4096, 5000])
def test_an_extent_that_is_not_whole_blocks_is_refused_at_once(extent):
    dirty = DirtyMap(GIB, 4096)
    with pytest.raises(ValueError, match=f"extent of {extent} bytes"):
        dirty.runs(max_extent=extent)
    with pytest.raises(ValueError, match=f"extent of {extent} bytes"):
        dirty.first_run(max_extent=extent)


@pytest.mark.parametrize("window", [(-1, 10), (0, GIB + 1), (GIB + 1, GIB), (5, -1)])
def test_a_window_off_the_disk_is_refused_at_once(window):
    with pytest.raises(ValueError, match="not on a disk"):
        DirtyMap(GIB, 4096).runs(*window)


def test_a_negative_gap_is_refused_at_once():
    with pytest.raises(ValueError, match="negative"):
        DirtyMap(GIB, 4096).runs(merge_gap=-1)


def test_a_run_over_many_chunks_comes_whole_or_in_equal_extents():
    dirty = DirtyMap.from_runs(8 * GIB, 4096, [(MIB, 5 * GIB)])
    assert list(dirty.runs()) == [(MIB, 5 * GIB)]
    pieces = list(dirty.runs(max_extent=3 * MIB))
    assert [length for _, length in pieces] == [3 * MIB] * 1706 + [2 * MIB]
    assert [offset for offset, _ in pieces] == [MIB + 3 * MIB * i for i in range(1707)]


def test_runs_look_at_a_chunk_only_when_they_get_there():
    chunk = CHUNK * 4096
    dirty = DirtyMap.from_runs(4 * chunk, 4096, [(0, chunk - 4096), (chunk, 4096), (3 * chunk, 1)])
    walk = dirty.runs()
    assert next(walk) == (0, chunk - 4096)
    dirty.clear(3 * chunk, 4096)
    dirty.mark(2 * chunk + 8192, 1)
    assert list(walk) == [(chunk, 4096), (2 * chunk + 8192, 4096)]


def test_extents_of_a_fragmented_long_run_come_before_its_end_is_known():
    chunk = CHUNK * 4096
    dirty = DirtyMap(4 * chunk, 4096)
    for k in range(4):
        dirty.mark(k * chunk, chunk // 2)
        dirty.mark(k * chunk + chunk // 2, chunk // 2)
    walk = dirty.runs(max_extent=MIB)
    assert next(walk) == (0, MIB)
    dirty.clear(3 * chunk, chunk)
    assert sum(length for _, length in walk) == 3 * chunk - MIB


def test_a_map_of_everything_is_walked_lazily():
    dirty = DirtyMap.full(2**53, 4096)
    first = list(itertools.islice(dirty.runs(max_extent=MIB), 3))
    assert first == [(0, MIB), (MIB, MIB), (2 * MIB, MIB)]


def test_walking_while_the_map_changes_misses_nothing_that_stays():
    dirty = DirtyMap(TIB, 4096)
    kept = [(k * GIB, 4096) for k in range(1000)]
    for offset, length in kept:
        dirty.mark(offset, length)
    seen = []
    for offset, length in dirty.runs():
        seen.append((offset, length))
        dirty.mark(offset + 64 * KIB, 4096)
        dirty.clear(offset + 64 * KIB, 4096)
        if len(seen) % 7 == 0:
            dirty.mark((offset + 500 * GIB) % TIB + 32 * KIB, 1)
    assert set(kept) <= set(seen)
    assert len(seen) == len(set(seen))


def memory_of(make):
    tracemalloc.start()
    try:
        kept = make()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept is not None
    return used


def sparse():
    return DirtyMap.from_runs(64 * TIB, 512, [(k * TIB, 512) for k in range(64)])


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda: DirtyMap(TIB, 4096), 4 * KIB),
        (lambda: DirtyMap.full(TIB, 4096), 4 * KIB),
        (lambda: DirtyMap.full(TIB + 5000, 4096), 4 * KIB),
        (lambda: DirtyMap(64 * TIB, 512), 256 * KIB),
        (lambda: DirtyMap.full(64 * TIB, 512), 256 * KIB),
        (sparse, 3 * MIB),
    ],
)
def test_memory_goes_where_blocks_differ(make, limit):
    assert memory_of(make) < limit


def test_the_fullest_bitmap_of_a_tebibyte_takes_32_mib():
    def checkered():
        dirty = DirtyMap(TIB, 4096)
        dirty.mark_runs(np.arange(0, TIB, GIB // 2), np.full(2048, 4096))
        return dirty

    assert 31 * MIB < memory_of(checkered) < 33 * MIB


def test_cleared_chunks_give_their_memory_back():
    def cleared():
        dirty = DirtyMap.from_runs(TIB, 4096, [(k * GIB, 4096) for k in range(1024)])
        for k in range(1024):
            dirty.clear(k * GIB, 4096)
        return dirty

    assert memory_of(cleared) < 256 * KIB


def test_dense_random_blocks_survive_the_way_to_runs_and_back():
    rng = np.random.default_rng(3)
    blocks = np.flatnonzero(rng.integers(0, 2, 2 * CHUNK + 77))
    dirty = DirtyMap((2 * CHUNK + 77) * 512, 512)
    dirty.mark_runs(blocks * 512, np.full(blocks.size, 512))
    starts, counts = dirty.run_arrays()
    covered = np.repeat(starts - np.append(0, np.cumsum(counts)[:-1]), counts) + np.arange(
        blocks.size
    )
    assert np.array_equal(covered, blocks)
    assert dirty.count() == blocks.size


def test_repr_says_how_much_is_dirty():
    assert repr(DirtyMap.full(10_000, 4096)) == "<DirtyMap 3 of 3 blocks of 4096 bytes dirty>"
