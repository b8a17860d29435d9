"""Holes, extents and zeroes of raw files, with and without the help of the kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vmferry.api.volume import Extent, ExtentKind, Geometry
from vmferry.units import MIB, TIB
from vmferry_volumes import linux, sparse
from vmferry_volumes.raw import RawDriver, RawOptions


def unsupported(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "no such operation")


async def test_tebibyte_of_holes_is_told_at_once(path: str) -> None:
    async with await RawDriver().create(path, Geometry(TIB)) as volume:
        await volume.write(TIB // 2, memoryview(b"x" * 4096))
        found = [extent async for extent in volume.extents(0, TIB)]
        assert [extent.kind for extent in found] == [
            ExtentKind.HOLE,
            ExtentKind.DATA,
            ExtentKind.HOLE,
        ]
        await volume.write_zeroes(0, TIB)
        assert os.stat(path).st_blocks == 0


async def test_extents_over_several_batches(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_BATCH", 3)
    step = 128 * 1024
    async with await RawDriver().create(path, Geometry(20 * step)) as volume:
        for place in range(0, 20 * step, 2 * step):
            await volume.write(place, memoryview(b"x" * step))
        found = [(e.offset, e.length, e.kind) async for e in volume.extents(0, 20 * step)]
    kinds = [ExtentKind.DATA, ExtentKind.HOLE] * 10
    assert found == [(k * step, step, kind) for k, kind in enumerate(kinds)]


def lseek_of(data: list[tuple[int, int]]) -> object:
    """``lseek`` of a file system that counts in bytes, with data in these ``(start, stop)``."""

    def lseek(_: int, offset: int, whence: int) -> int:
        inside = [stop for start, stop in data if start <= offset < stop]
        if whence == os.SEEK_HOLE:
            return inside[0] if inside else offset
        later = [start for start, _ in data if start >= offset]
        if not inside and not later:
            raise OSError(errno.ENXIO, "no data")
        return offset if inside else later[0]

    return lseek


async def test_holes_are_rounded_inwards(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scan(offset: int, end: int) -> tuple[list[Extent], int]:
        return sparse.scan_extents(-1, offset, end, 512)

    data = [(700, 710), (1030, 1040), (5000, 6100)]
    monkeypatch.setattr(sparse.os, "lseek", lseek_of(data))
    found = [(e.offset, e.length, e.kind) async for e in sparse.merged_extents(scan, 0, 8192)]
    assert found == [
        (0, 512, ExtentKind.HOLE),
        (512, 1024, ExtentKind.DATA),
        (1536, 3072, ExtentKind.HOLE),
        (4608, 1536, ExtentKind.DATA),
        (6144, 2048, ExtentKind.HOLE),
    ]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_no_holes_where_lseek_cannot_tell(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def lseek(*_: int) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(sparse.os, "lseek", lseek)
    found, reached = sparse.scan_extents(-1, 0, 8192, 512)
    assert [(e.offset, e.length, e.kind) for e in found] == [(0, 8192, ExtentKind.DATA)]
    assert reached == 8192


@pytest.mark.parametrize("missing", [("punch_hole",), ("punch_hole", "zero_range")])
@pytest.mark.parametrize("direct", ["off", "on"])
async def test_zeroes_without_the_kernels_help(
    path: str, missing: tuple[str, ...], direct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setattr(linux, name, unsupported)
    size = 3 * MIB
    driver = RawDriver(RawOptions(direct=direct, sector_size=4096))  # type: ignore[arg-type]
    async with await driver.create(path, Geometry(size, 4096)) as volume:
        await volume.write(0, memoryview(b"x" * size))
        await volume.write_zeroes(4096, size - 8192)
        await volume.discard(0, 4096)
    data = Path(path).read_bytes()
    assert data[4096:-4096] == bytes(size - 8192)
    assert data[:4096] == data[-4096:] == b"x" * 4096
