"""The same dirty bytes in larger or smaller blocks."""

from __future__ import annotations

import numpy as np

from vmferry.dirtymap.bits import CHUNK_BYTES, coarsen_octets, octets
from vmferry.dirtymap.bulk import set_edges
from vmferry.dirtymap.runs import run_segments
from vmferry.dirtymap.table import BlockTable

__all__ = ["coarsen_into", "refine_into"]


def coarsen_into(coarse: BlockTable, fine: BlockTable, shift: int) -> None:
    """Set in ``coarse``, which is clear, each block of which ``fine`` has a ``2**shift``th part."""
    part, mask = CHUNK_BYTES >> shift, (1 << shift) - 1
    for k, bitmap in fine.bitmaps.items():
        at = (k & mask) * part
        octets(coarse.own(k >> shift))[at : at + part] = coarsen_octets(octets(bitmap), shift)
    for first, stop in fine.full_ranges():
        coarse.set_range(first >> shift, -(-stop >> shift))


def refine_into(fine: BlockTable, coarse: BlockTable, shift: int) -> None:
    """Set in ``fine`` the ``2**shift`` parts of each block in ``coarse``, as far as it has them."""
    for starts, stops in run_segments(coarse, 0, coarse.blocks):
        edges = np.column_stack((starts, stops)).ravel() << shift
        set_edges(fine, np.minimum(edges, fine.blocks))
