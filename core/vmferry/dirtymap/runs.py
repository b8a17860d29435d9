"""From a table to the runs of its dirty blocks, lazily and chunk by chunk.

Each stage is an iterator of pairs of arrays ``(starts, stops)``, in blocks, ascending.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from vmferry.dirtymap.bits import CHUNK_SHIFT, Blocks, chunk_edges
from vmferry.dirtymap.table import BlockTable

__all__ = ["Segment", "Window", "byte_runs", "run_segments"]

Segment: TypeAlias = tuple[Blocks, Blocks]


@dataclass(frozen=True, slots=True)
class Window:
    """What of the disk to look at, in bytes, and how blocks translate to bytes."""

    start: int
    stop: int
    shift: int

    @property
    def blocks(self) -> tuple[int, int]:
        """``(first, stop)`` of the blocks the window touches; none if it is empty."""
        if self.start >= self.stop:
            return 0, 0
        return self.start >> self.shift, -(-self.stop >> self.shift)


def run_segments(
    table: BlockTable, first: int, stop: int, *, gap: int = 0, limit: int = 0
) -> Iterator[Segment]:
    """Runs of the dirty blocks in ``[first, stop)``, joined over gaps of up to ``gap`` blocks.

    A run longer than ``limit`` blocks may come in parts, each but the last a multiple of
    ``limit`` long; 0 keeps every run whole, however many chunks that takes to see.
    """
    segments = (_clip(segment, first, stop) for segment in _chunk_segments(table, first, stop))
    held: Segment | None = None
    for segment in segments:
        if not segment[0].size:
            continue
        starts, stops = _join(held, segment, gap)
        if starts.size > 1:
            yield starts[:-1], stops[:-1]
        held = starts[-1:], stops[-1:]
        if limit and (ready := (int(stops[-1] - starts[-1]) - 1) // limit * limit):
            yield held[0], held[0] + ready
            held = held[0] + ready, held[1]
    if held is not None:
        yield held


def _chunk_segments(table: BlockTable, first: int, stop: int) -> Iterator[Segment]:
    k, end = first >> CHUNK_SHIFT, -(-stop >> CHUNK_SHIFT)
    while first < stop and (k := table.live.find(1, k, end)) >= 0:
        base = k << CHUNK_SHIFT
        if table.full[k]:
            after = table.full.find(0, k, end)
            k = end if after < 0 else after
            yield np.array([base]), np.array([min(k << CHUNK_SHIFT, table.blocks)])
        else:
            edges = chunk_edges(table.bitmaps[k]) + base
            k += 1
            yield edges[0::2], edges[1::2]


def _clip(segment: Segment, first: int, stop: int) -> Segment:
    starts, stops = segment
    if starts[0] >= first and stops[-1] <= stop:
        return segment
    starts, stops = np.maximum(starts, first), np.minimum(stops, stop)
    left = starts < stops
    return starts[left], stops[left]


def _join(held: Segment | None, segment: Segment, gap: int) -> Segment:
    starts, stops = segment
    if held is not None:
        starts, stops = np.append(held[0], starts), np.append(held[1], stops)
    apart = np.flatnonzero(starts[1:] - stops[:-1] > gap)
    if apart.size + 1 >= starts.size:
        return starts, stops
    return np.append(starts[:1], starts[apart + 1]), np.append(stops[apart], stops[-1:])


def byte_runs(
    table: BlockTable, window: Window, *, gap: int = 0, limit: int = 0
) -> Iterator[tuple[int, int]]:
    """``(offset, length)`` in bytes of the runs in the window, none above ``limit`` blocks."""
    first, stop = window.blocks
    for starts, stops in run_segments(table, first, stop, gap=gap, limit=limit):
        begins = starts << window.shift
        ends = np.minimum(stops << window.shift, window.stop)
        if limit and (stops - starts).max() > limit:
            yield from _split(begins, ends, limit << window.shift, window.start)
        else:
            begins = np.maximum(begins, window.start)
            yield from zip(begins.tolist(), (ends - begins).tolist(), strict=True)


def _split(begins: Blocks, ends: Blocks, limit: int, start: int) -> Iterator[tuple[int, int]]:
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        for low in range(begin, end, limit):
            offset = max(low, start)
            yield offset, min(low + limit, end) - offset
