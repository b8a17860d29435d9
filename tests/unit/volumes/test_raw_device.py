"""Raw disks that are block devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.api.volume import Access, Geometry
from vmferry.errors import VolumeGeometry
from vmferry.units import MIB
from vmferry_volumes.raw import RawDriver

GEOMETRY = Geometry(MIB)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    backing = tmp_path / "backing"
    backing.touch()
    os.truncate(backing, MIB)
    try:
        made = subprocess.run(
            ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("losetup is not installed")
    if made.returncode:
        pytest.skip(f"no loop device can be had: {made.stderr.strip()}")
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


async def test_device_must_be_large_enough(device: str) -> None:
    with pytest.raises(VolumeGeometry, match="make it larger"):
        await RawDriver().check_create(device, Geometry(MIB + 512))
    await RawDriver().check_create(device, Geometry(MIB - 512))
    async with await RawDriver().create(device, Geometry(MIB - 512)) as volume:
        assert volume.geometry == Geometry(MIB)


async def test_device_is_left_alone(device: str) -> None:
    await RawDriver().remove(device)
    assert await RawDriver().probe(device) == GEOMETRY


async def test_device_written_below_its_page_cache_is_read_afresh(
    device: str, tmp_path: Path
) -> None:
    """As a guest's backend writes it: the backing file stands for the medium."""
    async with await RawDriver().open(device, Access.READ) as volume:
        for content in (b"a", b"b", b"c"):
            with (tmp_path / "backing").open("r+b") as backing:
                backing.write(content * MIB)
            buffer = bytearray(MIB)
            await volume.read_into(0, memoryview(buffer))
            assert buffer == content * MIB
