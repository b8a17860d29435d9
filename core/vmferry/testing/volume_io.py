"""What a volume reads, writes, zeroes, discards and tells of its extents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from vmferry.api.volume import Access, Extent, ExtentKind, Volume
from vmferry.testing.checks import check, check_same, pattern, refuses
from vmferry.testing.volume_base import Driver, VolumeKit, read

__all__ = ["VolumeIO"]

_SEES = "on return every later read sees it"
_ALL_THERE = "On return every byte is there; a short read is an error."
_BACK = "``data`` is the caller's again on return."
_NOT_KEPT = "A buffer handed to a plugin is not kept after the call returns."
_BOUNDS = "anything else raises ``ValueError`` and does nothing"
_COVER = "Cover the range by extents, ascending, without gaps, neighbours of different kind."
_ZERO = "Make the range read as zeroes."
_INSIDE = "Never touches a byte outside the range."

Spot = tuple[int, int]


def _spots(size: int, sector: int) -> list[Spot]:
    """Offset and length where off-by-one errors live: ends, borders, one sector, everything."""
    return [
        (0, sector),
        (size - sector, sector),
        (0, size),
        (4096 - sector, 2 * sector),
        (65536 - sector, 65536 + 2 * sector),
        (size // 2 // sector * sector, 8 * sector),
        (size - 65536 - sector, 65536 + sector),
        (sector, size - 2 * sector),
    ]


_SPOTS = range(len(_spots(1 << 20, 512)))


class VolumeIO(VolumeKit):
    """The contents of a volume."""

    def spot(self, number: int) -> Spot:
        """One of the ranges worth trying."""
        return _spots(self.geometry.size, self.geometry.sector_size)[number]

    @pytest.mark.parametrize("number", _SPOTS)
    async def test_write(self, driver: Driver, location: str, number: int) -> None:
        """A write is seen whole by both readers, and its neighbours stay."""
        offset, length = self.spot(number)
        async with self.filled(driver, location) as (volume, before):
            data = pattern(length, 2)
            await volume.write(offset, memoryview(data))
            wanted = before[:offset] + data + before[offset + length :]
            await self.agree(volume, location, wanted, _SEES)

    @pytest.mark.parametrize("number", _SPOTS)
    async def test_read(self, driver: Driver, location: str, number: int) -> None:
        """A read fills all of its buffer, and nothing beside it."""
        offset, length = self.spot(number)
        async with self.filled(driver, location) as (volume, data):
            around = bytearray(b"\x5a" * (length + 14))
            await volume.read_into(offset, memoryview(around)[7:-7])
            check_same(around[7:-7], data[offset : offset + length], _ALL_THERE, offset)
            check(
                around[:7] + around[-7:] == b"\x5a" * 14,
                "Fill all of ``buffer`` with what the disk holds from ``offset``.",
                "bytes beside the buffer were changed",
            )

    @pytest.mark.parametrize("length", [512 * 8, 65536, 1 << 20])
    async def test_buffer_of_a_write(self, driver: Driver, location: str, length: int) -> None:
        """What the caller does to its buffer after a write does not reach the disk."""
        async with self.made(driver, location) as volume:
            buffer = bytearray(pattern(length))
            wanted = bytes(buffer) + bytes(self.geometry.size - length)
            await volume.write(0, memoryview(buffer))
            buffer[:] = b"\xee" * length
            await self.agree(volume, location, wanted, _BACK)

    async def test_many_writes_share_a_buffer(self, driver: Driver, location: str) -> None:
        """Concurrent writers, each of which uses one buffer again and again."""
        sector = self.geometry.sector_size
        count = min(256, self.geometry.size // sector)
        wanted = bytearray(self.geometry.size)

        async def writer(lane: int, volume: Volume) -> None:
            buffer = bytearray(sector)
            for place in range(lane, count, 16):
                buffer[:] = pattern(sector, place)
                wanted[place * sector : (place + 1) * sector] = buffer
                await volume.write(place * sector, memoryview(buffer))

        async with self.made(driver, location) as volume:
            await asyncio.gather(*(writer(lane, volume) for lane in range(16)))
            await self.agree(volume, location, wanted, _BACK)

    @pytest.mark.parametrize("turns", [0, 1, 2, 4])
    @pytest.mark.parametrize("length", [4096, 1 << 20])
    async def test_cancelled_write(
        self, driver: Driver, location: str, length: int, turns: int
    ) -> None:
        """When a cancelled write says so, it is over: its buffer and its range are free."""
        async with self.made(driver, location) as volume:
            buffer = bytearray(pattern(length))
            await _cancelled(volume.write(0, memoryview(buffer)), turns)
            buffer[:] = b"\xee" * length
            await asyncio.sleep(0.01)
            kept = (await self.stored(volume, location)).find(b"\xee" * 64)
            check(kept < 0, _NOT_KEPT, f"a cancelled write put later bytes at {kept}")
            data = pattern(self.geometry.size, 2)
            await volume.write(0, memoryview(data))
            await asyncio.sleep(0.01)
            await self.agree(volume, location, data, _SEES)

    @pytest.mark.parametrize("turns", [0, 1, 2, 4])
    @pytest.mark.parametrize("length", [4096, 1 << 20])
    async def test_cancelled_read(
        self, driver: Driver, location: str, length: int, turns: int
    ) -> None:
        """When a cancelled read says so, nothing more arrives in its buffer."""
        async with self.filled(driver, location) as (volume, _):
            buffer = bytearray(length)
            await _cancelled(volume.read_into(0, memoryview(buffer)), turns)
            buffer[:] = b"\xee" * length
            await asyncio.sleep(0.01)
            check(buffer == b"\xee" * length, _NOT_KEPT, "a cancelled read filled its buffer late")

    async def test_concurrent_reads(self, driver: Driver, location: str) -> None:
        """Overlapping reads of several sizes at once, each with its own right answer."""
        async with self.filled(driver, location) as (volume, data):
            spots = [self.spot(number) for number in _SPOTS] * 4
            for spot, found in zip(
                spots, await asyncio.gather(*(read(volume, *spot) for spot in spots)), strict=True
            ):
                offset, length = spot
                check_same(found, data[offset : offset + length], _ALL_THERE, offset)

    async def test_overlapping_writes(self, driver: Driver, location: str) -> None:
        """Of two writes at once to one place, each sector is of one or the other."""
        says = "overlapping writes to one place may be done in either order"
        sector, length = self.geometry.sector_size, 128 * self.geometry.sector_size
        first, second = pattern(length, 2), pattern(length, 3)
        async with self.made(driver, location) as volume:
            await asyncio.gather(
                volume.write(0, memoryview(first)), volume.write(0, memoryview(second))
            )
            found = (await self.stored(volume, location))[:length]
        for place in range(0, length, sector):
            either = {first[place : place + sector], second[place : place + sector]}
            check(found[place : place + sector] in either, says, f"byte {place} is of neither")

    async def test_reader_sees_a_writer(self, driver: Driver, location: str) -> None:
        """A volume opened for reading is not misled by what it read before."""
        says = "A write that was completed before the call is seen"
        async with (
            self.filled(driver, location) as (volume, data),
            await driver.open(location, Access.READ) as reader,
        ):
            check_same(await read(reader, 0, len(data)), data, says)
            for seed in (2, 3):
                data = pattern(len(data), seed)
                await volume.write(0, memoryview(data))
                check_same(await read(reader, 0, len(data)), data, says)

    @pytest.mark.parametrize("kind", ["read", "write", "zeroes", "discard"])
    async def test_out_of_bounds(self, driver: Driver, location: str, kind: str) -> None:
        """Outside the disk, or not whole sectors: refused, and nothing changed."""
        size, sector = self.geometry.size, self.geometry.sector_size
        wrong = [(size, sector), (size - sector, 2 * sector), (-sector, sector), (0, size + sector)]
        if sector > 1:
            wrong += [(1, sector), (0, sector - 1), (sector // 2, sector), (size - 1, 1)]
        async with self.filled(driver, location) as (volume, data):
            for offset, length in wrong:
                with refuses(ValueError, _BOUNDS):
                    await _request(volume, kind, offset, length)
            await self.agree(volume, location, data, _BOUNDS)

    @pytest.mark.parametrize("unmap", [True, False])
    @pytest.mark.parametrize("number", _SPOTS)
    async def test_zeroes(self, driver: Driver, location: str, number: int, unmap: bool) -> None:
        """Zeroes in the range, everything else as before."""
        offset, length = self.spot(number)
        async with self.filled(driver, location) as (volume, data):
            await volume.write_zeroes(offset, length, unmap=unmap)
            wanted = data[:offset] + bytes(length) + data[offset + length :]
            await self.agree(volume, location, wanted, _ZERO)

    @pytest.mark.parametrize("number", _SPOTS)
    async def test_discard(self, driver: Driver, location: str, number: int) -> None:
        """Neighbours stay, and the range can be written again."""
        offset, length = self.spot(number)
        async with self.filled(driver, location) as (volume, data):
            await volume.discard(offset, length)
            found = await self.stored(volume, location)
            check_same(found[:offset], data[:offset], _INSIDE)
            end = offset + length
            check_same(found[end:], data[end:], _INSIDE, end)
            await volume.write(offset, memoryview(data)[offset:end])
            await self.agree(volume, location, data, _SEES)

    @pytest.mark.parametrize("number", _SPOTS)
    async def test_extents(self, driver: Driver, location: str, number: int) -> None:
        """They cover each range, and what they call zero is zero on the disk."""
        async with self.made(driver, location) as volume:
            for start in range(0, self.geometry.size - 65536, 3 * 65536):
                length = 32768 + self.geometry.sector_size
                await volume.write(start, memoryview(pattern(length, start)))
            stored = await self.stored(volume, location)
            _check_extents(await _extents(volume, *self.spot(number)), self.spot(number), stored)

    async def test_extents_after_changes(self, driver: Driver, location: str) -> None:
        """They stay true when ranges are zeroed, discarded and written again."""
        size, sector = self.geometry.size, self.geometry.sector_size
        async with self.filled(driver, location) as (volume, _):
            await volume.write_zeroes(65536 - sector, 131072 + sector)
            await volume.write(131072, memoryview(pattern(sector, 2)))
            await volume.discard(size // 2 // sector * sector, 131072)
            stored = await self.stored(volume, location)
            _check_extents(await _extents(volume, 0, size), (0, size), stored)

    async def test_extents_of_nothing(self, driver: Driver, location: str) -> None:
        """No byte, no extent."""
        async with self.made(driver, location) as volume:
            check(not await _extents(volume, 0, 0), _COVER, "an empty range has extents")

    async def test_holes_are_told(self, driver: Driver, location: str) -> None:
        """A disk that was just made is no data to speak of."""
        self.needs(driver, "holes")
        if not self.creatable:
            pytest.skip("creatable is False: what a used disk holds before is not known")
        async with self.made(driver, location) as volume:
            found = await _extents(volume, 0, self.geometry.size)
        data = sum(extent.length for extent in found if extent.kind is ExtentKind.DATA)
        says = "``extents`` tells holes from data, so that round 0 skips them."
        check(data < self.geometry.size // 2, says, f"{data} bytes of an empty disk are data")

    async def test_extents_left_halfway(self, driver: Driver, location: str) -> None:
        """A caller that stops asking does not keep the volume from being closed."""
        async with self.filled(driver, location) as (volume, _):
            await volume.write_zeroes(0, 131072)
            walk = volume.extents(0, self.geometry.size)
            await anext(walk)
            await asyncio.wait_for(volume.close(), 30)
            await walk.aclose()  # type: ignore[attr-defined]


async def _request(volume: Volume, kind: str, offset: int, length: int) -> None:
    requests: dict[str, Callable[[], Awaitable[object]]] = {
        "read": lambda: volume.read_into(offset, memoryview(bytearray(length))),
        "write": lambda: volume.write(offset, memoryview(bytes(length))),
        "zeroes": lambda: volume.write_zeroes(offset, length),
        "discard": lambda: volume.discard(offset, length),
    }
    await requests[kind]()


async def _cancelled(request: Awaitable[None], turns: int) -> None:
    """Cancel ``request`` after some turns of the loop, and wait until it says that it is over."""
    task = asyncio.ensure_future(request)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def _extents(volume: Volume, offset: int, length: int) -> list[Extent]:
    return [extent async for extent in volume.extents(offset, length)]


def _check_extents(found: list[Extent], spot: Spot, stored: bytes) -> None:
    offset, length = spot
    place, before = offset, None
    for extent in found:
        check(extent.offset == place and extent.length > 0, _COVER, f"{extent} at {place}")
        check(extent.kind is not before, _COVER, f"{extent} is of its neighbour's kind")
        place, before = place + extent.length, extent.kind
        if extent.kind is not ExtentKind.DATA:
            check_same(
                stored[extent.offset : place],
                bytes(extent.length),
                "read as zeroes at some moment after the call",
                extent.offset,
            )
    check(place == offset + length, _COVER, f"the extents end at {place}")
