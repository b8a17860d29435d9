"""What a subclass of ``VolumeConformance`` gives, and what its tests use."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

from vmferry.api.plugin import Grade
from vmferry.api.volume import Geometry, Volume, VolumeDriver
from vmferry.testing.checks import check_same, pattern
from vmferry.units import KIB

__all__ = ["Driver", "VolumeKit", "read"]

Driver = VolumeDriver[Any]

_SEES = "on return every later read sees it"


class VolumeKit:
    """Override the two fixtures; the rest where the default does not fit.

    Attributes:
        geometry: of the disk that the tests make. Its size is no multiple of 4096, so that the
            last block is a partial one; a format that cannot have that says another.
        creatable: ``create`` makes a disk. False where one can only be used, such as a block
            device; ``location`` then is such a device of exactly this geometry.

    """

    geometry: ClassVar[Geometry] = Geometry(1024 * KIB + 512, 512)
    creatable: ClassVar[bool] = True

    @pytest.fixture
    def driver(self) -> Driver:
        """The driver under test."""
        raise NotImplementedError("give a fixture `driver` that returns your VolumeDriver")

    @pytest.fixture
    def location(self) -> str:
        """A place where there is no disk yet, or a device to be used."""
        raise NotImplementedError("give a fixture `location` where `driver` can make a disk")

    def read_raw(self, location: str, offset: int, length: int) -> bytes:
        """What the disk holds, told by other means than the plugin's own reader. May block.

        It is called after ``flush``, while the volume is open.
        """
        with open(location, "rb") as file:
            return os.pread(file.fileno(), length, offset)

    def crash(self, location: str) -> bool:
        """Lose everything that was never made durable; False where that cannot be arranged."""
        return False

    @contextlib.asynccontextmanager
    async def made(self, driver: Driver, location: str) -> AsyncIterator[Volume]:
        """A volume of ``geometry`` that reads as zeroes, closed afterwards."""
        volume = await driver.create(location, self.geometry)
        try:
            if not self.creatable:
                await volume.write_zeroes(0, self.geometry.size)
            yield volume
        finally:
            await volume.close()

    @contextlib.asynccontextmanager
    async def filled(self, driver: Driver, location: str) -> AsyncIterator[tuple[Volume, bytes]]:
        """A volume full of data without a zero sector, and that data."""
        data = pattern(self.geometry.size)
        async with self.made(driver, location) as volume:
            await volume.write(0, memoryview(data))
            yield volume, data

    async def stored(self, volume: Volume, location: str) -> bytes:
        """The whole disk as ``read_raw`` sees it."""
        await volume.flush()
        return await asyncio.to_thread(self.read_raw, location, 0, self.geometry.size)

    async def agree(
        self, volume: Volume, location: str, wanted: bytes | bytearray, sentence: str = _SEES
    ) -> None:
        """Fail unless the plugin's reader and ``read_raw`` both find ``wanted`` on the disk."""
        check_same(await read(volume, 0, self.geometry.size), wanted, sentence)
        check_same(await self.stored(volume, location), wanted, sentence)

    async def unwritten(self, driver: Driver, location: str) -> None:
        """Make the disk and close it."""
        async with self.made(driver, location):
            pass

    def needs_create(self) -> None:
        """Skip where ``create`` makes nothing."""
        if not self.creatable:
            pytest.skip("creatable is False: a disk here can only be used, not made or removed")

    def needs(self, driver: Driver, capability: str) -> None:
        """Skip where the driver's grade of ``capability`` is ``NONE``."""
        if getattr(driver.capabilities, capability) is Grade.NONE:
            pytest.skip(f"{type(driver).__name__}.capabilities.{capability} is NONE")


async def read(volume: Volume, offset: int, length: int) -> bytearray:
    """The range as the plugin reads it, into a buffer that held something else."""
    buffer = bytearray(b"\xa5" * length)
    await volume.read_into(offset, memoryview(buffer))
    return buffer
