"""A qemu-storage-daemon(1) of our own, which opens an image and serves it to us alone by NBD.

Its listening socket is made here and inherited, so that nobody polls for it; socket and folder are
removed as soon as the one client is connected. The kernel kills the daemon when the thread that
started it ends (``PR_SET_PDEATHSIG``, prctl(2), set by setpriv(1)): with the process at the latest.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from vmferry.errors import VmferryError
from vmferry_support.commands import CommandMissing
from vmferry_support.nbd import ALLOCATION, NbdClient, NbdError
from vmferry_support.outlast import finished

__all__ = ["StorageDaemon", "StorageDaemonFailed"]

_PROGRAM = "qemu-storage-daemon"
_NODE = "disk"
_PATIENCE = 60.0
_AGAIN = 0.1
_SHOWN = 2000


class StorageDaemonFailed(VmferryError):
    """The daemon did not start.

    Attributes:
        complaint: what it wrote to stderr.

    """

    def __init__(self, complaint: str) -> None:
        self.complaint = complaint
        super().__init__(f"{_PROGRAM} did not start: {complaint or 'it gave no reason'}")


class StorageDaemon:
    """A running daemon and the connection to its export.

    Attributes:
        client: the connection.

    """

    def __init__(self, process: asyncio.subprocess.Process, stderr: IO[bytes]) -> None:
        self.client: NbdClient
        self._process, self._stderr = process, stderr

    @classmethod
    async def start(cls, node: Mapping[str, object], *, writable: bool) -> StorageDaemon:
        """Start one that opens ``node``, described as for ``blockdev-add`` without a node name.

        Raises:
            CommandMissing: the daemon is not installed.
            StorageDaemonFailed: it refused the image.

        """
        program = _found(_PROGRAM)
        folder = tempfile.mkdtemp(prefix="vmferry-")
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- the daemon's as long as it runs
        daemon = None
        try:
            path = f"{folder}/nbd"
            with _listening(path) as listener:
                arguments = _arguments(listener.fileno(), node, writable=writable)
                daemon = cls(await _spawn(program, arguments, listener.fileno(), stderr), stderr)
            await daemon._connect(path)
        except BaseException:
            if daemon is not None:
                await finished(daemon.kill())
            stderr.close()
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return daemon

    async def _connect(self, path: str) -> None:
        """Connect, if need be again: rarely the daemon drops a client that came before it ran."""
        for last in (False, False, True):
            try:
                self.client = await NbdClient.connect(
                    path, _NODE, contexts=[ALLOCATION], timeout=_PATIENCE
                )
            except NbdError as error:
                if last or await self._ended_within(5):
                    raise StorageDaemonFailed(self.complaint() or str(error)) from error
            else:
                return

    async def _ended_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return self._process.returncode is not None

    def complaint(self) -> str:
        """What it wrote to stderr so far, or how it ended; ``""`` if neither says anything."""
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()[-_SHOWN:]
        code = self._process.returncode
        return said or (f"it ended with code {code}" if code else "")

    async def stop(self) -> None:
        """Let it close its image in good order, and end. May be called twice."""
        await finished(self._stop())

    async def _stop(self) -> None:
        await self.client.close()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._terminate()
        except TimeoutError:
            await self.kill()
        self._stderr.close()

    async def _terminate(self) -> None:
        """Its signal handler only sets a flag, which a main loop about to sleep overlooks."""
        while self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    await self._process.wait()

    async def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise CommandMissing(f"the program {program} is not installed (Debian: qemu-utils)")
    return path


def _listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def _arguments(listener: int, node: Mapping[str, object], *, writable: bool) -> list[str]:
    export = {
        "type": "nbd",
        "id": "vmferry",
        "node-name": _NODE,
        "name": _NODE,
        "writable": writable,
    }
    return [
        *("--nbd-server", f"addr.type=fd,addr.str={listener},max-connections=0"),
        *("--blockdev", json.dumps({**node, "node-name": _NODE})),
        *("--export", json.dumps(export)),
    ]


async def _spawn(
    program: str, arguments: list[str], listener: int, stderr: IO[bytes]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(_found("setpriv"), "--pdeathsig", "KILL", "--", program, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=[listener],
        env={**os.environ, "LC_ALL": "C"},
    )
