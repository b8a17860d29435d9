"""The tracker keeps its contract, and waits for a disk's server."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from vmferry_harbour.tracker import SonarOptions, SonarTracker

from vmferry.api import Disk
from vmferry.errors import TrackerError
from vmferry.testing.tracker import TrackerConformance, TrackerRig

SIZE = (2 << 20) + 512


class FileRig(TrackerRig):
    """A guest that writes a file by itself: each write has landed when the call returns."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "disk0.raw"
        self.tracker = SonarTracker()
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


class TestSonarTracker(TrackerConformance):
    """All of the contract."""

    @pytest.fixture
    def rig(self, tmp_path: Path) -> FileRig:
        """A disk with a guest."""
        return FileRig(tmp_path)


class TestWithSha256(TestSonarTracker):
    """And with the other digest."""

    @pytest.fixture
    def rig(self, tmp_path: Path) -> FileRig:
        """A disk with a guest."""
        rig = FileRig(tmp_path)
        rig.tracker = SonarTracker(SonarOptions(digest="sha256"))
        return rig


async def drain(folder: Path, reply: object) -> list[Any]:
    """Drain a disk whose server answers that; returns what the server was asked."""
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(4))
        asked.append(msgpack.unpackb(await reader.readexactly(length)))
        body = msgpack.packb(reply)
        writer.write(len(body).to_bytes(4) + body)
        await writer.drain()
        await reader.read()
        writer.close()

    (folder / "disk").write_bytes(bytes(8192))
    facts = {"control": str(folder / "control"), "export": "disk0"}
    disk = Disk(name="disk0", size=8192, location=str(folder / "disk"), facts=facts)
    tracker = SonarTracker(SonarOptions(patience=20))
    server = await asyncio.start_unix_server(serve, folder / "control")
    try:
        await tracker.start(disk, 4096)
        await tracker.drain()
    finally:
        await tracker.stop()
        server.close()
    return asked


@pytest.mark.asyncio
async def test_a_server_is_asked_to_drain(tmp_path: Path) -> None:
    """In the words of its protocol."""
    asked = await drain(tmp_path, {"ok": True})
    assert asked == [{"op": "drain", "disk": "disk0", "timeout": 20.0}]


@pytest.mark.asyncio
@pytest.mark.parametrize("reply", [{"ok": False, "error": "no"}, "yes", {}])
async def test_a_server_that_does_not_drain_is_an_error(tmp_path: Path, reply: object) -> None:
    """The migration must not go on as if it had."""
    with pytest.raises(TrackerError, match="did not drain disk0"):
        await drain(tmp_path, reply)


@pytest.mark.asyncio
async def test_a_server_that_cannot_be_asked_is_found_before() -> None:
    """By the check."""
    disk = Disk(name="disk0", size=8192, facts={"backend": "vbd/3/51712"})
    (finding,) = await SonarTracker().check(disk, 4096)
    assert finding.code == "sonar-no-control"
