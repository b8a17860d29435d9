"""Which pieces may not have come to their volume, so that a lost connection costs those alone.

A piece is on record from the moment it is handed out until a barrier behind it has been answered.
It is behind a barrier only if its lane had taken it before the barrier was sent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from vmferry.engine.disks import SourceDisk
from vmferry.engine.sender import Piece

__all__ = ["Ledger"]


class Ledger:
    """The pieces of one round that are not known to be in their volume at the destination."""

    def __init__(self) -> None:
        self._handed: set[Piece] = set()
        self._gone: list[Piece] = []
        self._marked: list[Piece] = []

    async def handing(self, work: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """``work``, whose pieces are on record before anybody has them."""
        async with aclosing(work):
            async for piece in work:
                self._handed.add(piece)
                yield piece

    def gone(self, piece: Piece) -> None:
        """Its lane has taken it."""
        self._handed.remove(piece)
        self._gone.append(piece)

    def mark(self) -> None:
        """A barrier is about to be sent, on all lanes."""
        self._marked, self._gone = self._gone, []

    def reached(self) -> None:
        """That barrier was answered."""
        self._marked = []

    def settle(self) -> None:
        """Everything was answered for."""
        self._handed.clear()
        self._gone, self._marked = [], []

    def put_back(self, disks: Sequence[SourceDisk]) -> None:
        """All that is on record is to be sent again; nothing is afterwards."""
        for piece in (*self._handed, *self._gone, *self._marked):
            disks[piece.disk].todo.mark(piece.offset, piece.length)
        self.settle()
