"""Contract of a volume plugin: a disk as random-access storage.

A ``VolumeDriver`` opens and creates; a ``Volume`` is one open disk. The engine reads the source's
volume while the guest writes it, and writes the destination's.

Required: ``geometry``, ``read_into``, ``write``, ``flush``, ``close``. The rest has a default that
is correct and slow; override it and raise its grade in ``VolumeCapabilities``.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Annotated, ClassVar, Generic

import msgspec

from vmferry.api.plugin import Capabilities, Grade, OptionsT, Plugin

__all__ = [
    "Access",
    "BlockIO",
    "Extent",
    "ExtentKind",
    "Geometry",
    "Volume",
    "VolumeCapabilities",
    "VolumeDriver",
]

_ZERO_PIECE = 1 << 20


class Access(enum.Enum):
    """How a volume is opened."""

    READ = "read"
    """Reading only; no lock is taken, since the guest has the disk open for writing."""
    WRITE = "write"
    """Reading and writing, alone: a second opener with ``WRITE`` gets ``VolumeBusy``."""


class Geometry(msgspec.Struct, frozen=True):
    """Size and sector of a disk.

    Attributes:
        size: bytes; a multiple of ``sector_size``.
        sector_size: smallest unit of I/O in bytes: offsets and lengths are multiples of it.

    """

    size: Annotated[int, msgspec.Meta(gt=0)]
    sector_size: Annotated[int, msgspec.Meta(ge=1)] = 512


class ExtentKind(enum.Enum):
    """What is known about an extent without reading it."""

    DATA = "data"
    """Allocated; its contents are unknown."""
    ZERO = "zero"
    """Reads as zeroes, and is allocated."""
    HOLE = "hole"
    """Reads as zeroes, and is not allocated."""


class Extent(msgspec.Struct, frozen=True):
    """A piece of a disk: ``length`` bytes from byte ``offset``, all of one kind."""

    offset: int
    length: int
    kind: ExtentKind


class VolumeCapabilities(Capabilities, frozen=True, kw_only=True):
    """What a volume can do beyond plain reading and writing.

    Attributes:
        holes: ``extents`` tells holes from data, so that round 0 skips them.
        zeroes: ``write_zeroes`` is cheaper than writing zeroes.
        discard: ``discard`` gives the space back.
        resize: reserved.

    """

    holes: Grade = Grade.NONE
    zeroes: Grade = Grade.EMULATED
    discard: Grade = Grade.NONE
    resize: Grade = Grade.NONE


class BlockIO(ABC):
    """A disk that can be read and written: a volume, or something that looks like one.

    Offsets and lengths are bytes, multiples of the sector size and inside the disk; anything else
    raises ``ValueError`` and does nothing. Calls may overlap in time; overlapping writes to one
    place may be done in either order. A failed request raises ``OSError`` with the kernel's errno
    or a ``VolumeError``; what a failed write left behind is undefined for its range only. A call
    that is cancelled ends when its I/O has ended: nothing is read into a buffer or written to the
    disk after it has raised.
    """

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Size and sector size; constant while open."""

    @abstractmethod
    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of ``buffer`` with what the disk holds from ``offset``.

        On return every byte is there; a short read is an error. A write that was completed before
        the call is seen; one under way may be seen in part.
        """

    @abstractmethod
    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``; on return every later read sees it. Durable only after ``flush``.

        ``data`` is the caller's again on return.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Make every write that was completed before the call durable (``fdatasync(2)``)."""

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes. With ``unmap`` it may lose its allocation."""
        self._check_range(offset, length)
        end = offset + length
        zeroes = memoryview(bytes(min(length, _ZERO_PIECE)))
        while offset < end:
            piece = zeroes[: end - offset]
            await self.write(offset, piece)
            offset += len(piece)

    async def discard(self, offset: int, length: int) -> None:
        """The range is no longer needed; its contents are undefined afterwards, also across reads.

        Never touches a byte outside the range. Doing nothing is right.
        """
        self._check_range(offset, length)

    def _check_range(self, offset: int, length: int) -> None:
        """Raise ``ValueError`` unless the range is whole sectors of this disk."""
        size, sector = self.geometry.size, self.geometry.sector_size
        if offset < 0 or length < 0 or offset + length > size or (offset | length) % sector:
            raise ValueError(
                f"{length} bytes at {offset}: not whole {sector}-byte sectors "
                f"of a disk of {size} bytes"
            )

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        """Cover the range by extents, ascending, without gaps, neighbours of different kind.

        A place reported as ``HOLE`` or ``ZERO`` read as zeroes at some moment after the call; a
        guest may have written it since, which the tracker knows.
        """
        if length:
            yield Extent(offset, length, ExtentKind.DATA)


class Volume(BlockIO):
    """One open disk. Use it with ``async with``, or call ``close``."""

    @abstractmethod
    async def close(self) -> None:
        """Give up the disk. Requests under way are finished first. May be called twice."""

    async def unlock(self) -> None:
        """Let another opener have the disk for writing, while this one can still be used.

        Called at the pivot: the guest opens the plain disk before the pull disk lets go of it.
        """
        return

    async def __aenter__(self) -> Volume:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class VolumeDriver(Plugin[OptionsT], ABC, Generic[OptionsT]):
    """Opens and creates disks of one format."""

    capabilities: ClassVar[VolumeCapabilities] = VolumeCapabilities()

    @abstractmethod
    async def probe(self, location: str) -> Geometry:
        """Size and sector size of an existing disk, without opening it for writing.

        Raises:
            VolumeMissing: there is nothing at ``location``.
            VolumeGeometry: it is there, but cannot be a disk (size 0, not a whole sector).

        """

    @abstractmethod
    async def open(self, location: str, access: Access) -> Volume:
        """Open an existing disk.

        Raises:
            VolumeMissing: there is nothing at ``location``.
            VolumeBusy: ``access`` is ``WRITE`` and somebody else writes it.
            VolumeGeometry: it is there, but cannot be a disk.

        """

    @abstractmethod
    async def check_create(self, location: str, geometry: Geometry) -> None:
        """Raise what ``create`` would raise, as far as can be known; change nothing."""

    @abstractmethod
    async def create(self, location: str, geometry: Geometry) -> Volume:
        """Make a disk that reads as zeroes throughout, and open it with ``Access.WRITE``.

        For storage that cannot be created but only used (a block device, a logical volume) it is
        opened, and must be at least as large; the engine then takes nothing in it for zero unless
        ``extents`` says so.

        Raises:
            VolumeExists: a disk is there already.
            VolumeGeometry: it cannot have that size or sector size.
            VolumeError: no space, or a folder that does not exist.

        """

    @abstractmethod
    async def remove(self, location: str) -> None:
        """Delete a disk that ``create`` made. Nothing there is no error; a device is left alone."""
