"""What the raw plugin does when it makes a disk: space, modes, failures half-way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vmferry.api.volume import Geometry
from vmferry.errors import VolumeError
from vmferry.units import MIB, TIB
from vmferry_volumes import linux, making, raw
from vmferry_volumes.raw import RawDriver, RawOptions

GEOMETRY = Geometry(MIB)


def unsupported(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "no such operation")


@pytest.mark.parametrize("use", ["check_create", "create"])
async def test_folder_must_exist(tmp_path: Path, use: str) -> None:
    with pytest.raises(VolumeError, match=r"make .*/none first"):
        await getattr(RawDriver(), use)(str(tmp_path / "none" / "disk"), GEOMETRY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("use", ["check_create", "create"])
async def test_no_space_to_preallocate(path: str, use: str) -> None:
    driver = RawDriver(RawOptions(preallocate="falloc"))
    with pytest.raises(VolumeError, match="free some space"):
        await getattr(driver, use)(path, Geometry(8 * TIB))
    assert not os.path.exists(path)


@pytest.mark.parametrize("failing", ["allocate", "open_disk", "fsync"])
async def test_failed_create_leaves_nothing(
    path: str, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    place = {"allocate": linux, "open_disk": raw, "fsync": making.os}[failing]
    with monkeypatch.context() as broken:
        broken.setattr(place, failing, full)
        with pytest.raises((VolumeError, OSError)):
            await RawDriver(RawOptions(preallocate="falloc")).create(path, GEOMETRY)
    assert not os.path.exists(path)


async def test_file_system_that_cannot_preallocate(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "allocate", unsupported)
    with pytest.raises(VolumeError, match="set preallocate=off"):
        await RawDriver(RawOptions(preallocate="falloc")).create(path, GEOMETRY)
    assert not os.path.exists(path)


async def test_preallocated_space_is_kept(path: str) -> None:
    async with await RawDriver(RawOptions(preallocate="falloc")).create(path, GEOMETRY) as volume:
        for give_back in (volume.discard, volume.write_zeroes):
            await volume.write(0, memoryview(b"x" * MIB))
            await give_back(0, MIB)
            assert os.stat(path).st_blocks * 512 >= MIB
        assert Path(path).read_bytes() == bytes(MIB)


async def test_space_is_given_back(path: str) -> None:
    async with await RawDriver().create(path, GEOMETRY) as volume:
        for give_back in (volume.discard, volume.write_zeroes):
            await volume.write(0, memoryview(b"x" * MIB))
            await volume.flush()
            assert os.stat(path).st_blocks
            await give_back(0, MIB)
            assert not os.stat(path).st_blocks


async def test_created_file_is_its_owners_alone(path: str) -> None:
    await (await RawDriver().create(path, GEOMETRY)).close()
    assert os.stat(path).st_mode & 0o777 == 0o600
