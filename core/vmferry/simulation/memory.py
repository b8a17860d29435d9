"""A guest's memory: pages that say which page and version they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["GuestMemory"]

_WORD = np.dtype("<u8")
_MAGIC = 0xFACE << 48


class GuestMemory:
    """Pages, the version of each that the guest's registers know, and which were written.

    Args:
        pages: how many.
        page_size: bytes of each, a multiple of 8.

    Attributes:
        versions: what the guest knows it wrote to each page.
        dirty: pages written since their bit was cleared.

    """

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.versions = np.zeros(pages, np.int32)
        self.dirty = np.zeros(pages, np.bool_)
        self._words: NDArray[np.uint64] = np.zeros((pages, page_size // 8), _WORD)

    def __len__(self) -> int:
        return len(self.versions)

    def write(self, page: int) -> None:
        """Write the next version of a page."""
        self.versions[page] += 1
        self.dirty[page] = True
        self._words[page] = _MAGIC | page << 32 | int(self.versions[page])

    def take_dirty(self) -> list[int]:
        """The pages written since the last call."""
        pages: list[int] = np.flatnonzero(self.dirty).tolist()
        self.dirty[:] = False
        return pages

    def get(self, pages: list[int]) -> bytes:
        """Contents of these pages, one after the other."""
        return self._words[pages].tobytes()

    def put(self, pages: list[int], data: bytes) -> None:
        """Set the contents of these pages."""
        self._words[pages] = np.frombuffer(data, _WORD).reshape(len(pages), -1)

    def wrong_pages(self) -> list[int]:
        """Pages that do not hold the version that the registers know, in every word."""
        numbers = np.arange(len(self), dtype=np.uint64) << np.uint64(32)
        expected = np.uint64(_MAGIC) | numbers | self.versions.astype(np.uint64)
        expected[self.versions == 0] = 0
        wrong: list[int] = np.flatnonzero((self._words != expected[:, None]).any(axis=1)).tolist()
        return wrong
