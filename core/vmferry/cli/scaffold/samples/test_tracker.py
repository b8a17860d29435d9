"""The tracker keeps its contract."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmferry.api import Disk
from vmferry.cli.scaffold.samples.tracker import ScanTracker
from vmferry.testing.tracker import TrackerConformance, TrackerRig

SIZE = (2 << 20) + 512


class FileRig(TrackerRig):
    """A guest that writes a file by itself: each write has landed when the call returns."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "disk0.raw"
        self.tracker = ScanTracker()
        self.disk = Disk(name="disk0", size=SIZE, location=str(self._path))

    async def open(self) -> None:
        """Make the disk."""
        self._path.write_bytes(bytes(SIZE))
        self._file = os.open(self._path, os.O_RDWR)

    async def close(self) -> None:
        """Let go of it."""
        os.close(self._file)

    async def guest_write(self, offset: int, data: bytes) -> None:
        """Write as the guest does."""
        os.pwrite(self._file, data, offset)

    async def guest_zero(self, offset: int, length: int) -> None:
        """Zero as the guest does."""
        os.pwrite(self._file, bytes(length), offset)

    async def guest_discard(self, offset: int, length: int) -> None:
        """Discard as the guest does: a plain file then reads as zeroes."""
        os.pwrite(self._file, bytes(length), offset)

    def read_raw(self, offset: int, length: int) -> bytes:
        """Read without the tracker."""
        return os.pread(self._file, length, offset)

    def in_flight(self) -> list[tuple[int, int]]:
        """Nothing ever is."""
        return []


class TestScanTracker(TrackerConformance):
    """All of the contract."""

    @pytest.fixture
    def rig(self, tmp_path: Path) -> FileRig:
        """A disk with a guest."""
        return FileRig(tmp_path)
