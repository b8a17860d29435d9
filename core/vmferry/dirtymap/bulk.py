"""Many runs into a table at once, without a Python step per run or block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmferry.dirtymap.bits import CHUNK_BLOCKS, CHUNK_MASK, CHUNK_SHIFT, Blocks, fill_chunk
from vmferry.dirtymap.table import BlockTable

__all__ = ["Integers", "merge_runs", "range_arrays", "set_edges"]

Integers: TypeAlias = Sequence[int] | NDArray[np.integer]
"""Whole numbers in one row."""

_FEW_EDGES = 32
"""Up to so many edges in a chunk, marking run by run is cheaper than building a bitmap."""


def range_arrays(offsets: Integers, lengths: Integers, size: int) -> tuple[Blocks, Blocks]:
    """Begin and end of each range that has a byte; ``ValueError`` unless all end by ``size``."""
    begins, counts = _integers("offsets", offsets), _integers("lengths", lengths)
    if begins.shape != counts.shape:
        raise ValueError(f"{begins.size} offsets come with {counts.size} lengths")
    for values in (begins, counts, begins + counts):
        if values.size and (values.min() < 0 or values.max() > size):
            raise ValueError(f"a range is not on a disk of {size} bytes")
    some = counts > 0
    return begins[some], (begins + counts)[some]


def _integers(name: str, values: Integers) -> Blocks:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} are not whole numbers in one row")
    return array.astype(np.int64)


def merge_runs(starts: Blocks, stops: Blocks) -> Blocks:
    """Edges of the union of the runs ``[start, stop)``, which may come unsorted and overlap.

    No run may be empty. The edges are strictly ascending, start and stop in turn.
    """
    if not starts.size:
        return np.empty(0, np.int64)
    if (starts[1:] < starts[:-1]).any():
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], stops[order]
    stops = np.maximum.accumulate(stops)
    apart = starts[1:] > stops[:-1]
    return np.column_stack((starts[np.append(True, apart)], stops[np.append(apart, True)])).ravel()


def set_edges(table: BlockTable, edges: Blocks) -> None:
    """Set the runs that these edges delimit, as ``merge_runs`` returns them; one step per chunk."""
    if not edges.size:
        return
    chunks = edges >> CHUNK_SHIFT
    groups = np.flatnonzero(np.diff(chunks, prepend=-1))
    reached = 0
    for begin, end in zip(groups.tolist(), [*groups[1:].tolist(), edges.size], strict=True):
        k, inside = int(chunks[begin]), bool(begin & 1)
        if inside:
            table.fill_chunks(reached, k)
        _set_chunk(table, k, edges[begin:end] & CHUNK_MASK, inside)
        reached = k + 1


def _set_chunk(table: BlockTable, k: int, edges: Blocks, inside: bool) -> None:
    if inside and edges.size == 1 and not edges[0]:
        return  # the run ended with the chunk before
    if table.full[k]:
        return
    if edges.size <= _FEW_EDGES:
        _set_few(table, k << CHUNK_SHIFT, ([0] if inside else []) + edges.tolist())
        return
    bitmap = fill_chunk(edges, inside)
    if k in table.bitmaps:
        table.bitmaps[k] |= bitmap
    else:
        table.put(k, bitmap)


def _set_few(table: BlockTable, base: int, edges: list[int]) -> None:
    for start, stop in zip_longest(edges[0::2], edges[1::2], fillvalue=CHUNK_BLOCKS):
        table.set_range(base + start, base + stop)
