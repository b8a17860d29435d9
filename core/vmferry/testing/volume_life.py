"""Volumes found, made, opened, locked, closed and removed."""

from __future__ import annotations

import asyncio

import pytest

from vmferry.api.plugin import API_VERSION, Options
from vmferry.api.volume import Access, Geometry, VolumeCapabilities
from vmferry.errors import VolumeBusy, VolumeError, VolumeExists, VolumeGeometry, VolumeMissing
from vmferry.testing.checks import check, check_same, pattern, refuses
from vmferry.testing.volume_base import Driver, VolumeKit, read

__all__ = ["VolumeLife"]

_MISSING = "VolumeMissing: there is nothing at ``location``."
_NOTHING_LEFT = "It never leaves a half-made resource behind"
_ALONE = "alone: a second opener with ``WRITE`` gets ``VolumeBusy``"


class VolumeLife(VolumeKit):
    """Everything about a volume but its contents."""

    async def test_says_what_it_is(self, driver: Driver) -> None:
        """The class attributes that every plugin has."""
        kind = type(driver)
        check(
            kind.api_version in {API_VERSION, API_VERSION - 1},
            "api_version: the contract version the plugin was written for",
            f"api_version is {kind.api_version!r}",
        )
        check(
            kind.name and kind.summary,
            "name: the name users type; the same as the entry point's.",
            f"name is {kind.name!r} and summary {kind.summary!r}",
        )
        check(
            isinstance(kind.capabilities, VolumeCapabilities)
            and issubclass(kind.options_type, Options),
            "capabilities: what the plugin can do beyond the required core.",
            f"{kind.capabilities!r} and {kind.options_type!r} are not of the types they should be",
        )

    async def test_missing(self, driver: Driver, location: str) -> None:
        """Nothing can be probed or opened where nothing is."""
        self.needs_create()
        with refuses(VolumeMissing, _MISSING):
            await driver.probe(location)
        for access in Access:
            with refuses(VolumeMissing, _MISSING):
                await driver.open(location, access)

    async def test_made_disk_is_as_asked(self, driver: Driver, location: str) -> None:
        """Geometry and zeroes, as seen by create, probe and open."""
        async with self.made(driver, location) as volume:
            says = "Size and sector size; constant while open."
            check(volume.geometry == self.geometry, says, f"create gives {volume.geometry}")
            zeroes = bytes(self.geometry.size)
            made = "Make a disk that reads as zeroes throughout"
            await self.agree(volume, location, zeroes, made)
        found = await driver.probe(location)
        check(
            found.size == self.geometry.size,
            "Size and sector size of an existing disk",
            f"probe gives {found}",
        )
        async with await driver.open(location, Access.READ) as again:
            check(again.geometry == found, says, f"open gives {again.geometry}, probe {found}")

    async def test_create_does_not_overwrite(self, driver: Driver, location: str) -> None:
        """An existing disk is refused, and what it holds stays."""
        self.needs_create()
        says = "VolumeExists: a disk is there already."
        async with self.filled(driver, location) as (volume, data):
            await volume.flush()
        with refuses(VolumeExists, says):
            await driver.check_create(location, self.geometry)
        with refuses(VolumeExists, says):
            await driver.create(location, self.geometry)
        async with await driver.open(location, Access.WRITE) as volume:
            await self.agree(volume, location, data, says)

    async def test_check_create_changes_nothing(self, driver: Driver, location: str) -> None:
        """Checking twice finds the same, and no disk."""
        self.needs_create()
        says = "Raise what ``create`` would raise, as far as can be known; change nothing."
        await driver.check_create(location, self.geometry)
        with refuses(VolumeMissing, says):
            await driver.probe(location)
        await driver.check_create(location, self.geometry)

    async def test_impossible_geometry(self, driver: Driver, location: str) -> None:
        """Half a sector is refused, and nothing is left of it."""
        says = "VolumeGeometry: it cannot have that size or sector size."
        impossible = Geometry(self.geometry.size + 1, self.geometry.sector_size)
        with refuses(VolumeGeometry, says):
            await driver.check_create(location, impossible)
        with refuses(VolumeGeometry, says):
            await driver.create(location, impossible)
        await self.unwritten(driver, location)

    @pytest.mark.parametrize("turns", [0, 1, 2, 5])
    async def test_cancelled_create(self, driver: Driver, location: str, turns: int) -> None:
        """A cancelled creation leaves the place free."""
        making = asyncio.create_task(driver.create(location, self.geometry))
        for _ in range(turns):
            await asyncio.sleep(0)
        if making.cancel():
            with refuses(asyncio.CancelledError, "Cancellation may hit every ``await``."):  # type: ignore[arg-type]
                await making
            if self.creatable:
                with refuses(VolumeMissing, _NOTHING_LEFT):
                    await driver.probe(location)
        else:
            await (await making).close()
            await driver.remove(location)
        await self.unwritten(driver, location)

    @pytest.mark.parametrize("turns", [0, 1, 2, 5])
    async def test_cancelled_open(self, driver: Driver, location: str, turns: int) -> None:
        """A cancelled opening leaves no lock behind."""
        await self.unwritten(driver, location)
        opening = asyncio.create_task(driver.open(location, Access.WRITE))
        for _ in range(turns):
            await asyncio.sleep(0)
        if opening.cancel():
            await asyncio.wait([opening])
        else:
            await (await opening).close()
        try:
            await (await driver.open(location, Access.WRITE)).close()
        except VolumeBusy as failure:
            check(False, _NOTHING_LEFT, f"opening again: {failure}")

    async def test_one_writer(self, driver: Driver, location: str) -> None:
        """One writer at a time; readers whenever they like; the next one after a close."""
        async with self.made(driver, location):
            with refuses(VolumeBusy, _ALONE):
                await driver.open(location, Access.WRITE)
            await (await driver.open(location, Access.READ)).close()
            with refuses(VolumeBusy, _ALONE):
                await driver.open(location, Access.WRITE)
        async with await driver.open(location, Access.READ):
            await (await driver.open(location, Access.WRITE)).close()

    async def test_unlock(self, driver: Driver, location: str) -> None:
        """After it another may write, and this volume still works and closes."""
        says = "Let another opener have the disk for writing, while this one can still be used."
        async with self.filled(driver, location) as (volume, data):
            await volume.unlock()
            await volume.unlock()
            try:
                other = await driver.open(location, Access.WRITE)
            except VolumeBusy as failure:
                check(False, says, f"{failure}")
            check_same(await read(volume, 0, len(data)), data, says)
            sector = pattern(self.geometry.sector_size, 2)
            await other.write(0, memoryview(sector))
            await volume.close()
            with refuses(VolumeBusy, _ALONE):
                await driver.open(location, Access.WRITE)
            await self.agree(other, location, sector + data[len(sector) :])
            await other.close()

    async def test_contents_stay(self, driver: Driver, location: str) -> None:
        """What was written is there when the disk is opened again."""
        async with self.filled(driver, location) as (volume, data):
            await volume.flush()
        async with await driver.open(location, Access.READ) as volume:
            says = "Make every write that was completed before the call durable"
            check_same(await read(volume, 0, len(data)), data, says)

    async def test_reader_cannot_write(self, driver: Driver, location: str) -> None:
        """A volume opened for reading refuses to change anything."""
        says = "Reading only; no lock is taken"
        async with self.filled(driver, location) as (volume, data):
            reader = await driver.open(location, Access.READ)
            with refuses((OSError, VolumeError), says):
                await reader.write(0, memoryview(bytes(self.geometry.sector_size)))
            with refuses((OSError, VolumeError), says):
                await reader.write_zeroes(0, self.geometry.sector_size)
            await reader.close()
            await self.agree(volume, location, data, says)

    async def test_close_twice_and_use_after(self, driver: Driver, location: str) -> None:
        """Closing again is nothing; any request afterwards is refused and does nothing."""
        async with self.filled(driver, location) as (volume, data):
            await volume.flush()
        await volume.close()
        says = "A failed request raises ``OSError`` with the kernel's errno or a ``VolumeError``"
        sector = self.geometry.sector_size
        with refuses((OSError, VolumeError), says):
            await volume.write(0, memoryview(bytes(sector)))
        with refuses((OSError, VolumeError), says):
            await read(volume, 0, sector)
        with refuses((OSError, VolumeError), says):
            await volume.write_zeroes(0, sector)
        with refuses((OSError, VolumeError), says):
            await volume.flush()
        async with await driver.open(location, Access.WRITE) as again:
            await self.agree(again, location, data, says)

    async def test_close_finishes_requests(self, driver: Driver, location: str) -> None:
        """A write under way when the volume is closed is either done whole or refused."""
        says = "Requests under way are finished first."
        async with self.made(driver, location) as volume:
            data = pattern(self.geometry.size)
            writing = asyncio.create_task(volume.write(0, memoryview(data)))
            await asyncio.sleep(0)
            await volume.close()
            was_under_way = not writing.done()
            await asyncio.wait([writing])
            failure = writing.exception()
            check(not was_under_way, says, "a write was still under way after close")
        async with await driver.open(location, Access.WRITE) as again:
            wanted = bytes(len(data)) if failure else data
            await self.agree(again, location, wanted, says)

    async def test_remove(self, driver: Driver, location: str) -> None:
        """It removes what create made; a second time there is nothing to do."""
        self.needs_create()
        says = "Delete a disk that ``create`` made. Nothing there is no error"
        await driver.remove(location)
        await self.unwritten(driver, location)
        for _ in range(2):
            await driver.remove(location)
            with refuses(VolumeMissing, says):
                await driver.probe(location)
        await self.unwritten(driver, location)

    async def test_durable_after_flush(self, driver: Driver, location: str) -> None:
        """What was flushed outlives a crash."""
        async with self.filled(driver, location) as (volume, data):
            await volume.flush()
            if not self.crash(location):
                pytest.skip("crash() is not overridden: losing what is not durable not arranged")
        async with await driver.open(location, Access.READ) as again:
            says = "Make every write that was completed before the call durable"
            check_same(await read(again, 0, len(data)), data, says)
