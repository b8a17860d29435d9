"""Set operations on two tables of the same number of blocks, chunk by chunk.

Each costs what the chunks with a bitmap cost; ``ours`` is changed, ``theirs`` is not, and the two
may be one and the same.
"""

from __future__ import annotations

from bitarray import bitarray

from vmferry.dirtymap.table import BlockTable

__all__ = ["difference_into", "intersect_into", "same_blocks", "union_into"]


def union_into(ours: BlockTable, theirs: BlockTable) -> None:
    """Set in ``ours`` what is set in ``theirs``."""
    _forget_where(ours, theirs.full)
    ours.full |= theirs.full
    ours.live |= theirs.live
    for k, bitmap in list(theirs.bitmaps.items()):
        if ours.full[k]:
            continue
        if k in ours.bitmaps:
            ours.bitmaps[k] |= bitmap
        else:
            ours.bitmaps[k] = bitmap.copy()


def difference_into(ours: BlockTable, theirs: BlockTable) -> None:
    """Clear in ``ours`` what is set in ``theirs``."""
    gone = theirs.full.copy()
    _forget_where(ours, gone)
    ours.live &= ~gone
    ours.full &= ~gone
    for k, bitmap in list(theirs.bitmaps.items()):
        if ours.live[k]:
            mine = ours.own(k)
            mine &= ~bitmap
            ours.drop_if_clear(k)


def intersect_into(ours: BlockTable, theirs: BlockTable) -> None:
    """Clear in ``ours`` what is not set in ``theirs``."""
    kept = theirs.live.copy()
    _forget_where(ours, ~kept)
    ours.live &= kept
    for k, bitmap in list(theirs.bitmaps.items()):
        if ours.full[k]:
            ours.put(k, bitmap.copy())
        elif ours.live[k]:
            mine = ours.bitmaps[k]
            mine &= bitmap
            ours.drop_if_clear(k)
    ours.full &= kept


def same_blocks(ours: BlockTable, theirs: BlockTable) -> bool:
    """Whether both hold the same blocks, however they are stored."""
    if ours.live != theirs.live:
        return False
    return all(ours.bits(k) == theirs.bits(k) for k in ours.bitmaps.keys() | theirs.bitmaps.keys())


def _forget_where(ours: BlockTable, chunks: bitarray) -> None:
    for k in [k for k in ours.bitmaps if chunks[k]]:
        del ours.bitmaps[k]
