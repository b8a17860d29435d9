"""Buffers as O_DIRECT wants them."""

from __future__ import annotations

import mmap


class Aligned:
    """Bytes that begin at a page."""

    def __init__(self, data: bytes) -> None:
        self._map = mmap.mmap(-1, max(len(data), 1))
        self._map.write(data)
        self.view = memoryview(self._map)[: len(data)]

    def close(self) -> None:
        self.view.release()
        self._map.close()
