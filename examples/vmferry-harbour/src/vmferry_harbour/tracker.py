"""A tracker that reads the disk and compares digests, and asks a disk's server to drain."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Annotated, Any, Literal

import msgpack  # type: ignore[import-untyped]
import msgspec

from vmferry.api import Disk, Finding, Options, Tracker, TrackerCapabilities
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError

__all__ = ["SonarOptions", "SonarTracker"]


class SonarOptions(Options, frozen=True, kw_only=True):
    """Options of the ``sonar`` tracker plugin."""

    digest: Annotated[
        Literal["blake2b", "sha256"], msgspec.Meta(description="how blocks are told apart")
    ] = "blake2b"
    patience: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for the guest's last writes",
            extra={"unit": "seconds"},
        ),
    ] = 30.0


class SonarTracker(Tracker[SonarOptions]):
    """Slow, but right whatever it is that writes the disk.

    A disk that ``migrate export`` serves has the facts ``control`` and ``export``; its server is
    asked to drain. A disk without facts is written by the guest itself, and what is written by a
    guest that was suspended has landed.
    """

    api_version = 1
    name = "sonar"
    summary = "compares the disk with digests of its blocks"
    options_type = SonarOptions
    capabilities = TrackerCapabilities()

    def __init__(self, options: SonarOptions | None = None) -> None:
        super().__init__(options)
        self._disk: Disk | None = None
        self._block = 0
        self._seen: list[bytes] = []

    async def check(self, disk: Disk, block_size: int) -> list[Finding]:
        """Refuse a disk whose server cannot be asked to drain."""
        if not disk.facts or {"control", "export"} <= disk.facts.keys():
            return []
        text = f"disk {disk.name}: its server cannot be asked when the last write has landed"
        return [Finding.error("sonar-no-control", text, "use the tracker that suits its server")]

    async def start(self, disk: Disk, block_size: int) -> int:
        """Take digests. What lands later is another digest at the next harvest."""
        try:
            self._seen = await asyncio.to_thread(self._listen, disk, block_size)
        except OSError as error:
            raise TrackerError(f"disk {disk.name} cannot be read: {error}") from error
        self._disk, self._block = disk, block_size
        return block_size

    def _listen(self, disk: Disk, block: int) -> list[bytes]:
        name = self.options.digest
        with open(disk.location, "rb") as file:
            blocks = range(0, disk.size, block)
            return [hashlib.new(name, file.read(block)).digest() for _ in blocks]

    async def harvest(self) -> DirtyMap:
        """Take digests again; forget the old ones when nothing can fail any more."""
        if self._disk is None:
            raise TrackerError("the tracker was not started")
        size, block = self._disk.size, self._block
        now = await asyncio.to_thread(self._listen, self._disk, block)
        dirty = DirtyMap(size, block)
        for number, (old, new) in enumerate(zip(self._seen, now, strict=True)):
            if old != new:
                dirty.mark(number * block, min(block, size - number * block))
        self._seen = now
        return dirty

    async def drain(self) -> None:
        """Wait until the disk's server has nothing under way."""
        if self._disk is None or not self._disk.facts:
            return
        control, export = self._disk.facts["control"], self._disk.facts["export"]
        patience = self.options.patience
        try:
            async with asyncio.timeout(patience + 1):
                request = {"op": "drain", "disk": export, "timeout": patience}
                reply = await _ask(control, request)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            raise TrackerError(f"{control} did not drain {export}: {error!r}") from error
        if not isinstance(reply, dict) or reply.get("ok") is not True:
            raise TrackerError(f"{control} did not drain {export}: {reply}")

    async def stop(self) -> None:
        """Forget the disk."""
        self._disk, self._seen = None, []


async def _ask(control: str, request: dict[str, Any]) -> Any:
    """One request and its reply: each a length of four bytes, and that many of msgpack."""
    reader, writer = await asyncio.open_unix_connection(control)
    try:
        body = msgpack.packb(request)
        writer.write(len(body).to_bytes(4) + body)
        length = int.from_bytes(await reader.readexactly(4))
        if length > 4096:
            raise ValueError(f"a reply of {length} bytes")
        return msgpack.unpackb(await reader.readexactly(length))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
