"""The volume plugins of this distribution, and the one in memory, against their contract."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.api.volume import Geometry
from vmferry.testing.memory import MemoryDriver
from vmferry.testing.volume import VolumeConformance
from vmferry.units import KIB
from vmferry_volumes.raw import RawDriver, RawOptions


class TestRawFile(VolumeConformance):
    @pytest.fixture
    def driver(self) -> RawDriver:
        return RawDriver()

    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        return str(tmp_path / "disk")


class TestRawFilePreallocated(TestRawFile):
    @pytest.fixture
    def driver(self) -> RawDriver:
        return RawDriver(RawOptions(preallocate="falloc"))


class TestRawFileDirect(TestRawFile):
    geometry = Geometry(1024 * KIB + 4096, 4096)

    @pytest.fixture
    def driver(self) -> RawDriver:
        return RawDriver(RawOptions(direct="on", sector_size=4096))


class TestRawDevice(VolumeConformance):
    creatable = False

    @pytest.fixture
    def driver(self) -> RawDriver:
        return RawDriver()

    @pytest.fixture
    def location(self, tmp_path: Path) -> Iterator[str]:
        backing = tmp_path / "backing"
        backing.write_bytes(b"")
        os.truncate(backing, self.geometry.size)
        device = attach(backing)
        try:
            yield device
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


class TestRawDeviceCached(TestRawDevice):
    @pytest.fixture
    def driver(self) -> RawDriver:
        return RawDriver(RawOptions(direct="off"))


def attach(backing: Path) -> str:
    try:
        made = subprocess.run(
            ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("losetup is not installed")
    if made.returncode:
        pytest.skip(f"no loop device can be had: {made.stderr.strip()}")
    return made.stdout.strip()


class TestMemory(VolumeConformance):
    @pytest.fixture
    def driver(self) -> MemoryDriver:
        self.disks = MemoryDriver()
        return self.disks

    @pytest.fixture
    def location(self) -> str:
        return "disk0"

    def read_raw(self, location: str, offset: int, length: int) -> bytes:
        return self.disks.disks[location].read(offset, length)

    def crash(self, location: str) -> bool:
        self.disks.disks[location].crash()
        return True
