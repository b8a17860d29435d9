"""A volume that is read and written by NBD, whoever serves it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from vmferry.api.volume import Extent, ExtentKind, Geometry, Volume
from vmferry.errors import VolumeError
from vmferry_support.nbd import ALLOCATION, NbdClient, NbdLost, Status
from vmferry_volumes.threads import Gate

__all__ = ["Backend", "NbdVolume"]

_KINDS = (ExtentKind.DATA, ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.HOLE)
"""By the flags of ``base:allocation``; a hole that does not read as zeroes may hold anything."""


class Backend(ABC):
    """Where the requests of one or several volumes go.

    Attributes:
        what: the disk, for errors.

    """

    what: str

    @abstractmethod
    async def enter(self) -> NbdClient:
        """The connection for one request, which calls ``leave`` when it has ended."""

    @abstractmethod
    def leave(self) -> None:
        """A request has ended."""

    @abstractmethod
    async def release(self, volume: NbdVolume) -> None:
        """A volume is closed."""

    @abstractmethod
    def explain(self, lost: NbdLost) -> VolumeError:
        """Why the connection ended."""


class NbdVolume(Volume):
    """One open disk behind a ``Backend``."""

    def __init__(self, backend: Backend, geometry: Geometry, *, writable: bool) -> None:
        self._backend, self._geometry, self._writable = backend, geometry, writable
        self._gate = Gate(lambda: VolumeError(f"{backend.what} is closed"))
        self._released = False

    @property
    def geometry(self) -> Geometry:
        """Size and sector size."""
        return self._geometry

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``."""
        view = _flat(buffer)
        self._check_range(offset, len(view))
        with self._gate, self._explained():
            client = await self._backend.enter()
            try:
                await client.read_into(offset, view)
            finally:
                self._backend.leave()

    async def write(self, offset: int, data: memoryview) -> None:
        """Write ``data``."""
        view = _flat(data)
        self._check_range(offset, len(view))
        with self._writing():
            client = await self._backend.enter()
            try:
                await client.write(offset, view)
            finally:
                self._backend.leave()

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes, without sending them."""
        self._check_range(offset, length)
        with self._writing():
            client = await self._backend.enter()
            try:
                await client.write_zeroes(offset, length, unmap=unmap)
            finally:
                self._backend.leave()

    async def discard(self, offset: int, length: int) -> None:
        """Give the space of whole clusters in the range back."""
        self._check_range(offset, length)
        with self._writing():
            client = await self._backend.enter()
            try:
                await client.trim(offset, length)
            finally:
                self._backend.leave()

    async def flush(self) -> None:
        """Make completed writes durable; nothing to do for a reader."""
        with self._gate, self._explained():
            if not self._writable:
                return
            client = await self._backend.enter()
            try:
                await client.flush()
            finally:
                self._backend.leave()

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        """What the server says of allocation, a bounded number of extents at a time."""
        self._check_range(offset, length)
        held: Extent | None = None
        end = offset + length
        while offset < end:
            status = await self._status(offset, end - offset)
            if status is None:
                found, offset = iter([Extent(offset, end - offset, ExtentKind.DATA)]), end
            else:
                found = _extents(status, self._geometry.sector_size)
                offset = status.offset + int(status.lengths.sum())
            for extent in found:
                if held and held.kind is extent.kind:
                    held = Extent(held.offset, held.length + extent.length, held.kind)
                    continue
                if held:
                    yield held
                held = extent
        if held:
            yield held

    async def _status(self, offset: int, length: int) -> Status | None:
        """Extents from ``offset`` on; None if the server does not tell of any."""
        with self._gate, self._explained():
            client = await self._backend.enter()
            try:
                if ALLOCATION not in client.export.contexts:
                    return None
                return await client.status(ALLOCATION, offset, length)
            finally:
                self._backend.leave()

    async def close(self) -> None:
        """Finish the requests under way and let go of the disk; not flushed: ``flush`` first."""
        await self._gate.shut()
        if not self._released:
            self._released = True
            await self._backend.release(self)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if not self._writable:
            raise VolumeError(f"{self._backend.what} is open for reading only")
        with self._gate, self._explained():
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except NbdLost as lost:
            raise self._backend.explain(lost) from lost


def _flat(buffer: memoryview) -> memoryview:
    return buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer


def _extents(status: Status, sector: int) -> Iterator[Extent]:
    """The extents, with zeroes and holes rounded inwards to whole sectors."""
    done = offset = status.offset
    for length, flags in zip(status.lengths.tolist(), status.flags.tolist(), strict=True):
        kind = _KINDS[flags & 3]
        begin, offset = offset, offset + length
        first, stop = -(-begin // sector) * sector, offset // sector * sector
        if kind is ExtentKind.DATA or first >= stop:
            continue
        if done < first:
            yield Extent(done, first - done, ExtentKind.DATA)
        yield Extent(first, stop - first, kind)
        done = stop
    if done < offset:
        yield Extent(done, offset - done, ExtentKind.DATA)
