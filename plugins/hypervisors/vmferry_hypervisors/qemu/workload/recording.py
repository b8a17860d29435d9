"""The recorder's process, from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from vmferry.errors import HypervisorError

__all__ = ["Recording"]

_PATIENCE = 60.0


class Recording:
    """A recorder that runs; end it with ``stop``."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self._process, self._socket = process, socket

    @classmethod
    async def start(cls, socket: Path, file: Path) -> Recording:
        """Start a recorder; on return it listens.

        Raises:
            HypervisorError: it ended instead.

        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vmferry_hypervisors.qemu.workload.recorder",
            os.fspath(socket),
            os.fspath(file),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        recording = cls(process, socket)
        try:
            async with asyncio.timeout(_PATIENCE):
                while not await asyncio.to_thread(socket.exists):
                    if process.returncode is not None:
                        raise HypervisorError(f"the recorder at {socket} ended at once")
                    await asyncio.sleep(0.01)
        except BaseException:
            await recording.stop()
            raise
        return recording

    def say(self, data: bytes) -> None:
        """Send this to the guest's serial line, where it spoke last."""
        self._stdin.write(data)

    @property
    def _stdin(self) -> asyncio.StreamWriter:
        assert self._process.stdin is not None  # a pipe
        return self._process.stdin

    async def stop(self) -> None:
        """End it. May be called twice."""
        self._stdin.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        await asyncio.to_thread(self._socket.unlink, missing_ok=True)
