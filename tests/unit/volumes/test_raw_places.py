"""Places, names and sizes that the raw plugin refuses, and links it follows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmferry.api.volume import Access, Geometry
from vmferry.errors import VolumeError, VolumeGeometry
from vmferry.units import MIB
from vmferry_volumes.raw import RawDriver, RawOptions

GEOMETRY = Geometry(MIB)


@pytest.mark.parametrize("use", ["probe", "open", "create", "remove"])
async def test_refuses_what_is_no_disk(tmp_path: Path, use: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for place in ("folder", "fifo", "/dev/null"):
        with pytest.raises(VolumeError, match=Path(place).name):
            await do(RawDriver(), use, str(tmp_path / place))


async def do(driver: RawDriver, use: str, location: str) -> None:
    match use:
        case "probe":
            await driver.probe(location)
        case "open":
            await (await driver.open(location, Access.WRITE)).close()
        case "create":
            await (await driver.create(location, GEOMETRY)).close()
        case _:
            await driver.remove(location)


@pytest.mark.parametrize("location", ["", "a\0b"])
@pytest.mark.parametrize("use", ["probe", "open", "create", "remove"])
async def test_refuses_what_is_no_path(location: str, use: str) -> None:
    with pytest.raises(VolumeError, match="not a path"):
        await do(RawDriver(), use, location)


async def test_symbolic_link_to_itself(path: str) -> None:
    os.symlink(path, path)
    with pytest.raises(VolumeError, match="leads back to itself; mend the link"):
        await RawDriver().probe(path)


async def test_symbolic_link_is_followed_and_never_removed(disk: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(disk)
    assert await RawDriver().probe(str(link)) == GEOMETRY
    with pytest.raises(VolumeError, match="remove it by hand"):
        await RawDriver().remove(str(link))
    assert link.is_symlink()


async def test_link_to_nowhere_is_not_written_through(path: str, tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(VolumeError):
        await RawDriver().create(path, GEOMETRY)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("size", "said"), [(0, "size 0"), (700, "truncate(1) to make it 1024")])
async def test_sizes_that_are_no_disk(path: str, size: int, said: str) -> None:
    Path(path).write_bytes(bytes(size))
    with pytest.raises(VolumeGeometry) as failure:
        await RawDriver().probe(path)
    assert said in str(failure.value)


async def test_sector_size_option_is_of_files(path: str) -> None:
    driver = RawDriver(RawOptions(sector_size=4096))
    Path(path).write_bytes(bytes(4096 + 512))
    with pytest.raises(VolumeGeometry, match="4096-byte sectors"):
        await driver.probe(path)
    os.truncate(path, 8192)
    assert await driver.probe(path) == Geometry(8192, 4096)
