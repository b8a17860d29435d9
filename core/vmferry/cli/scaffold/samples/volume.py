"""Disks that are plain files, in the fewest lines that keep the contract."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vmferry.api import Access, Geometry, Options, Volume, VolumeCapabilities, VolumeDriver
from vmferry.errors import VolumeBusy, VolumeError, VolumeExists, VolumeGeometry, VolumeMissing

__all__ = ["PlainDriver", "PlainOptions", "PlainVolume"]


class PlainOptions(Options, frozen=True, kw_only=True):
    """Options of the ``plainfile`` volume plugin."""

    sector_size: Annotated[
        Literal[512, 4096],
        msgspec.Meta(description="sector of a file that is there", extra={"unit": "bytes"}),
    ] = 512


async def outlast(work: asyncio.Future[Any], undo: Callable[[Any], object] | None = None) -> Any:
    """Wait for ``work`` to end, also if cancelled; then ``undo`` what nobody will get."""
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return work.result()
    if work.exception() is None and undo:
        undo(work.result())
    raise cancelled


class PlainVolume(Volume):
    """One open file."""

    def __init__(self, file: int, geometry: Geometry) -> None:
        self._file, self._geometry = file, geometry
        self._calls: set[asyncio.Future[Any]] = set()

    @property
    def geometry(self) -> Geometry:
        """Size and sector size."""
        return self._geometry

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read, in as many calls as it takes."""
        await self._transfer(os.preadv, offset, buffer)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write, in as many calls as it takes."""
        await self._transfer(os.pwritev, offset, data)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Check the range, and leave the rest to the base class."""
        self._check(offset, length)
        await super().write_zeroes(offset, length)

    async def discard(self, offset: int, length: int) -> None:
        """Check the range; to do nothing is right."""
        self._check(offset, length)

    async def flush(self) -> None:
        """Let the kernel write everything to the disk."""
        await self._call(os.fdatasync, self._opened())

    async def unlock(self) -> None:
        """Give up the lock, but not the file."""
        fcntl.flock(self._opened(), fcntl.LOCK_UN)

    async def close(self) -> None:
        """Wait for the calls under way, then close the file."""
        file, self._file = self._file, -1
        while self._calls:
            await asyncio.wait(self._calls)
        if file >= 0:
            os.close(file)

    def _check(self, offset: int, length: int) -> None:
        size, sector = self._geometry.size, self._geometry.sector_size
        if offset < 0 or offset + length > size or (offset | length) % sector:
            raise ValueError(f"{length} bytes at {offset}: not whole sectors of the disk")

    def _opened(self) -> int:
        if self._file < 0:
            raise VolumeError("the disk is closed")
        return self._file

    async def _transfer(self, call: Callable[..., int], offset: int, buffer: memoryview) -> None:
        view, done = buffer.cast("B"), 0
        self._check(offset, len(view))
        while done < len(view):
            done += await self._call(call, self._opened(), [view[done:]], offset + done)

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call on a thread, to the end: until then the buffer is in use."""
        call = asyncio.ensure_future(asyncio.to_thread(function, *args))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await outlast(call)


class PlainDriver(VolumeDriver[PlainOptions]):
    """Opens and makes plain files."""

    api_version = 1
    name = "plainfile"
    summary = "a regular file, read and written in the simplest way"
    options_type = PlainOptions
    capabilities = VolumeCapabilities()

    async def probe(self, location: str) -> Geometry:
        """Size of the file."""
        return await asyncio.to_thread(self._probe, location)

    async def open(self, location: str, access: Access) -> Volume:
        """Open a file that is there."""
        opening = asyncio.to_thread(lambda: _open(location, access, self._probe(location)))
        opened = await outlast(asyncio.ensure_future(opening), lambda made: os.close(made[0]))
        return PlainVolume(*opened)

    async def check_create(self, location: str, geometry: Geometry) -> None:
        """Look whether the file could be made."""
        await asyncio.to_thread(_check_new, Path(location), geometry)

    async def create(self, location: str, geometry: Geometry) -> Volume:
        """Make a sparse file and open it."""

        def unmake(made: tuple[int, Geometry]) -> None:
            os.close(made[0])
            os.unlink(location)

        making = asyncio.to_thread(_make, Path(location), geometry)
        return PlainVolume(*await outlast(asyncio.ensure_future(making), unmake))

    async def remove(self, location: str) -> None:
        """Delete the file."""
        await asyncio.to_thread(Path(location).unlink, missing_ok=True)

    def _probe(self, location: str) -> Geometry:
        try:
            size = Path(location).stat().st_size
        except OSError as error:
            raise VolumeMissing(f"{location}: {error.strerror}") from error
        if not size or size % self.options.sector_size:
            raise VolumeGeometry(f"{location}: {size} bytes are no whole sectors")
        return Geometry(size, self.options.sector_size)


def _check_new(path: Path, geometry: Geometry) -> None:
    if os.path.lexists(path):
        raise VolumeExists(f"{path} exists already; choose another place")
    if geometry.size % geometry.sector_size:
        raise VolumeGeometry(f"{path}: {geometry.size} bytes are no whole sectors")
    if not path.parent.is_dir():
        raise VolumeError(f"{path}: there is no such folder")


def _make(path: Path, geometry: Geometry) -> tuple[int, Geometry]:
    _check_new(path, geometry)
    with path.open("xb") as file:
        file.truncate(geometry.size)
    return _open(str(path), Access.WRITE, geometry)


def _open(location: str, access: Access, geometry: Geometry) -> tuple[int, Geometry]:
    file = os.open(location, os.O_RDWR if access is Access.WRITE else os.O_RDONLY)
    if access is Access.WRITE:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise VolumeBusy(f"{location} is open for writing elsewhere") from None
    return file, geometry
