"""Memory for arriving payloads, used again and again.

The kernel hands out new memory page by page and clears each, which takes as long as copying it;
a large buffer that is freed goes back at once, and the next one begins anew.
"""

from __future__ import annotations

import threading

from vmferry.units import KIB, MIB

__all__ = ["Buffers"]

_SMALL = 64 * KIB


class Buffers:
    """Gives buffers, and gives them again once nobody holds a view of them any more.

    May be used from any thread.

    Args:
        most: bytes to keep for use again; what is asked for beyond is new memory each time.

    """

    def __init__(self, most: int = 64 * MIB) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: list[bytearray] = []

    def allocate(self, size: int) -> memoryview:
        """``size`` writable bytes with any content; see ``vmferry.api.transport.Allocate``."""
        if size < _SMALL:
            return memoryview(bytearray(size))
        with self._lock:
            # The view is made under the lock: it is what makes the buffer count as taken.
            return memoryview(self._found(size) or self._made(size))[:size]

    @property
    def kept(self) -> int:
        """Bytes in use or to be used again."""
        return sum(map(len, self._kept))

    def trim(self) -> None:
        """Give back what nobody holds."""
        with self._lock:
            self._drop_free()

    def _found(self, size: int) -> bytearray | None:
        """The free buffer that has been made first: the fewest are in use that way."""
        fitting = (each for each in self._kept if len(each) >= size and _is_free(each))
        return next(fitting, None)

    def _made(self, size: int) -> bytearray:
        self._make_room(size)
        buffer = bytearray(size + 1)
        buffer.pop()  # room for the byte that _is_free adds
        if self.kept + size <= self._most:
            self._kept.append(buffer)
        return buffer

    def _make_room(self, size: int) -> None:
        """Give up free buffers, all of which are too small by now."""
        if self.kept + size > self._most:
            self._drop_free()

    def _drop_free(self) -> None:
        self._kept = [buffer for buffer in self._kept if not _is_free(buffer)]


def _is_free(buffer: bytearray) -> bool:
    """Whether no view of ``buffer`` exists: while one does, it cannot be resized."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    buffer.pop()
    return True
