"""Device-mapper tables of a pull disk: what is local goes straight, the rest through the export."""

from __future__ import annotations

import numpy as np

from vmferry.dirtymap import DirtyMap
from vmferry_support.dm import SECTOR, Segment, linear

__all__ = ["local_table", "pull_table"]


def local_table(size: int, local: str) -> list[Segment]:
    """The table of a disk of ``size`` bytes that is wholly on ``local``."""
    return [linear(0, size // SECTOR, local, 0)]


def pull_table(pending: DirtyMap, local: str, export: str, most: int) -> list[Segment]:
    """The table that maps pending ranges to ``export`` and the others to ``local``.

    Args:
        pending: of the whole disk.
        local: path or number of the local device.
        export: path or number of the device that is served.
        most: segments at most; the clean ranges between pending ones that are nearest to each
            other go to the export as well, as many as need be. It serves them all the same.

    """
    segments: list[Segment] = []
    at, end = 0, pending.size // SECTOR
    for start, stop in _ranges(pending, max(1, (most - 1) // 2)):
        if start > at:
            segments.append(linear(at, start - at, local, at))
        segments.append(linear(start, stop - start, export, start))
        at = stop
    if at < end:
        segments.append(linear(at, end - at, local, at))
    return segments


def _ranges(pending: DirtyMap, most: int) -> list[tuple[int, int]]:
    """At most ``most`` ranges that hold all pending blocks, in sectors, ascending."""
    first, count = pending.run_arrays()
    starts = first * pending.block_size // SECTOR
    stops = np.minimum((first + count) * pending.block_size, pending.size) // SECTOR
    if len(starts) > most:
        gaps = starts[1:] - stops[:-1]
        kept = np.sort(np.argsort(gaps, kind="stable")[len(gaps) - most + 1 :])
        starts = np.concatenate([starts[:1], starts[kept + 1]])
        stops = np.concatenate([stops[kept], stops[-1:]])
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
