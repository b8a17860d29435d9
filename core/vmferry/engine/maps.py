"""Dirty maps to and from their compact form: large ones on a worker, small ones at once.

A worker has a low priority and may have to wait for a processor longer than a small map takes; and
while maps go over, the guest stands still.
"""

from __future__ import annotations

from vmferry.dirtymap import DirtyMap
from vmferry.engine.context import Workers

__all__ = ["MAX_MAP", "decoded", "encoded"]

MAX_MAP = 4 << 30
"""Most bytes of one encoded map: 64 TiB in 4 KiB blocks need 2 GiB at worst."""
_SMALL = 1 << 24
"""Blocks of a disk; with as few of them dirty, and as few bytes, a map takes 3 ms at most."""
_FEW, _SHORT = 8192, 16 << 10


async def encoded(pending: DirtyMap, workers: Workers) -> bytes:
    """``pending.encode()``."""
    if pending.blocks <= _SMALL and pending.count() <= _FEW:
        return pending.encode()
    return await workers.run(pending.encode)


async def decoded(data: bytes, size: int, block_size: int, workers: Workers) -> DirtyMap:
    """``DirtyMap.decode``, of at most ``MAX_MAP`` bytes; raises as it does."""
    if size // block_size <= _SMALL and len(data) <= _SHORT:
        return _decode(data, size, block_size)
    return await workers.run(_decode, data, size, block_size)


def _decode(data: bytes, size: int, block_size: int) -> DirtyMap:
    return DirtyMap.decode(data, size=size, block_size=block_size, max_bytes=MAX_MAP)
