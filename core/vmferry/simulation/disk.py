"""A simulated disk: what it holds, and what of that would outlive a loss of power."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Annotated

import msgspec
import numpy as np

from vmferry.api.volume import Extent, ExtentKind, Geometry
from vmferry.units import KIB

__all__ = ["DiskParameters", "Request", "SimDisk"]

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Chance = Annotated[float, msgspec.Meta(ge=0, le=1)]

_KINDS = (ExtentKind.HOLE, ExtentKind.DATA, ExtentKind.ZERO)
_HOLE, _DATA, _ZERO = range(3)
_STALE = 0xDD
"""What a discarded range is filled with, where it is not left as it was or zeroed."""


class DiskParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What a disk is like.

    Attributes:
        read: longest time a read takes; each takes a random part of it, so that requests overlap
            and finish out of order.
        write: the same for writes, zeroes and discards.
        flush: the same for flushes.
        tear: chance that a request is done in two parts with time between them.
        unit: bytes that are allocated together.

    """

    read: Seconds = 0.0004
    write: Seconds = 0.0004
    flush: Seconds = 0.002
    tear: Chance = 0.1
    unit: Annotated[int, msgspec.Meta(ge=512)] = 4 * KIB


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a disk: ``number`` counts all requests of the disk from 1."""

    number: int
    kind: str
    offset: int
    length: int


@dataclass(slots=True)
class _Change:
    """Something that was done to the disk and is not durable; ``data`` or a fill byte."""

    offset: int
    length: int
    data: bytes | None
    fill: int = 0

    def apply(self, content: np.ndarray, length: int) -> None:
        end = self.offset + length
        if self.data is None:
            content[self.offset : end] = self.fill
        else:
            content[self.offset : end] = np.frombuffer(self.data, np.uint8, length)


class SimDisk:
    """A disk that outlives the processes that use it.

    Args:
        name: for messages.
        geometry: size and sector size.
        parameters: how it behaves.
        random: decides what a crash leaves, and what becomes of discarded ranges.

    Attributes:
        content: what reads see.
        durable: what a loss of power would leave at least.
        tamper: called for each request; returns an errno to fail it with, or ``None``.
        writer: who has it open for writing.
        openers: how many have it open.
        served: there is a way to it; if not, nobody opens it any more.

    """

    def __init__(
        self, name: str, geometry: Geometry, parameters: DiskParameters, random: Random
    ) -> None:
        self.name, self.geometry, self.parameters, self.random = name, geometry, parameters, random
        self.content = np.zeros(geometry.size, np.uint8)
        self.durable = np.zeros(geometry.size, np.uint8)
        self.view = self.content.data
        self.tamper: Callable[[Request], int | None] = lambda request: None
        self.writer: object | None = None
        self.requests = 0
        self.openers = 0
        self.served = True
        self._kinds = np.full(-(-geometry.size // parameters.unit), _HOLE, np.uint8)
        self._volatile: deque[_Change] = deque()
        self._changes = 0

    def _units(self, offset: int, length: int) -> slice:
        """Units that the range touches."""
        unit = self.parameters.unit
        return slice(offset // unit, -(-(offset + length) // unit))

    def _whole_units(self, offset: int, length: int) -> slice:
        unit, end = self.parameters.unit, offset + length
        stop = len(self._kinds) if end == self.geometry.size else end // unit
        first = -(-offset // unit)
        return slice(first, max(first, stop))

    def _change(self, change: _Change) -> None:
        change.apply(self.content, change.length)
        self._volatile.append(change)
        self._changes += 1

    def write(self, offset: int, data: memoryview) -> None:
        """Write; visible at once, durable with a later flush."""
        self._kinds[self._units(offset, len(data))] = _DATA
        self._change(_Change(offset, len(data), bytes(data)))

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeroes."""
        self._kinds[self._whole_units(offset, length)] = _HOLE if unmap else _ZERO
        self._change(_Change(offset, length, None))

    def discard(self, offset: int, length: int) -> None:
        """Leave the range as it is, zero it, or fill it with rubbish."""
        outcome = self.random.randrange(3)
        if outcome == 1:
            self.zero(offset, length, unmap=True)
        elif outcome == 2:
            self._kinds[self._units(offset, length)] = _DATA
            self._change(_Change(offset, length, None, _STALE))

    def changes(self) -> int:
        """A mark for ``settle``: everything done so far."""
        return self._changes

    def settle(self, mark: int) -> None:
        """Make everything durable that was done before ``mark`` was taken."""
        while self._volatile and self._changes - len(self._volatile) < mark:
            change = self._volatile.popleft()
            change.apply(self.durable, change.length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What is allocated in the range, at this moment."""
        units, size = self._units(offset, length), self.parameters.unit
        kinds = self._kinds[units]
        edges = np.flatnonzero(np.diff(kinds)) + 1
        bounds = [0, *edges.tolist(), len(kinds)]
        for first, stop in itertools.pairwise(bounds):
            start = max(offset, (units.start + first) * size)
            end = min(offset + length, (units.start + stop) * size)
            yield Extent(start, end - start, _KINDS[kinds[first]])

    def lose_power(self) -> None:
        """Keep what is durable, and any part of what is not, by chance; nobody has it open."""
        keep = self.random.choice((0.0, 0.5, 1.0))
        for change in self._volatile:
            if self.random.random() < keep:
                change.apply(self.durable, self._part(change.length))
        self._volatile.clear()
        self.content[:] = self.durable
        self.writer = None
        self._recount()

    def _part(self, length: int) -> int:
        if self.random.random() >= self.parameters.tear:
            return length
        sector = self.geometry.sector_size
        return self.random.randrange(length // sector + 1) * sector

    def fill(self, content: np.ndarray) -> None:
        """Make ``content`` what the disk holds, durably."""
        self.content[:] = content
        self.durable[:] = content
        self._recount()

    def _recount(self) -> None:
        starts = np.arange(0, self.geometry.size, self.parameters.unit)
        used = np.logical_or.reduceat(self.content != 0, starts)
        self._kinds[:] = np.where(used, _DATA, _HOLE)
