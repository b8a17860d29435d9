"""The process that serves a trial guest's disk at the source: ``python -m vmferry export``.

It is what an operator would start for a guest whose writes are to be tracked without help of the
kernel, and is run as a command since a plugin imports nothing of the core but the contracts.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from vmferry.errors import HypervisorError
from vmferry_hypervisors.process.launch import environment

__all__ = ["DiskDaemon"]

_PATIENCE = 10.0
_LONGEST_PATH = 107


class DiskDaemon:
    """Serves one disk; ends with ``stop``.

    Attributes:
        socket: where the disk is served.
        control: where the tracker asks what was written.

    """

    def __init__(self, location: Path, name: str) -> None:
        self._location, self._name = location, name
        self._process: asyncio.subprocess.Process | None = None
        self._folder: Path | None = None
        folder = location.parent
        if len(os.fsencode(folder / "export.control")) > _LONGEST_PATH:
            self._folder = folder = Path(tempfile.mkdtemp(prefix="vmferry-"))
        self.socket = folder / "export.sock"
        self.control = folder / "export.control"

    @property
    def url(self) -> str:
        """The disk's URL."""
        return f"nbd+unix:///{quote(self._name)}?socket={quote(str(self.socket))}"

    async def start(self, timeout: float) -> None:
        """Start the daemon; on return it serves.

        Raises ``HypervisorError`` if it ended, or was not ready within ``timeout`` seconds.
        """
        log = self._location.parent / "export.log"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                env=environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        try:
            async with asyncio.timeout(timeout):
                await self._ready(self._process, log)
        except TimeoutError:
            raise HypervisorError(f"{self._location} is not served yet; see {log}") from None

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "vmferry", "export", str(self._location)]
        command += ["--name", self._name, "--socket", str(self.socket)]
        return [*command, "--control", str(self.control)]

    async def _ready(self, process: asyncio.subprocess.Process, log: Path) -> None:
        if process.stdout is None:
            raise HypervisorError("the disk's daemon has no output")
        while line := await process.stdout.readline():
            if line.startswith(b"ready"):
                return
        text = await asyncio.to_thread(log.read_text, errors="replace")
        last = text.strip().rpartition("\n")[2]
        raise HypervisorError(f"{self._location} cannot be served: {last}; see {log}")

    async def stop(self) -> None:
        """End the daemon, by force if it does not go. May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            process.send_signal(number)
        try:
            async with asyncio.timeout(_PATIENCE):
                await process.wait()
                return
        except TimeoutError:
            continue
