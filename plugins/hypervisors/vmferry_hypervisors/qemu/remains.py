"""The end of a QEMU: when nobody needs it, and until its process is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from pathlib import Path

from vmferry.errors import HypervisorError
from vmferry_support.qemu_exports import is_of_disk
from vmferry_support.qmp import Qmp, QmpLost
from vmferry_support.unix import connect_unix, listener_of

__all__ = [
    "Process",
    "await_exports",
    "end_qemu",
    "memory_socket",
    "qemu_of",
    "quit_qemu",
    "remove_memory_socket",
    "user_of",
]

_POLL = 0.01


class Process:
    """A process that is not our child, or need not be."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self._handle = -1

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        if self._handle < 0:
            return True
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(0))

    async def wait(self) -> None:
        """Return once it has ended."""
        if self.ended:
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        watched = os.dup(self._handle)
        loop.add_reader(watched, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(watched)
            os.close(watched)

    def kill(self, number: int) -> None:
        """Send a signal; none if it has ended."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def close(self) -> None:
        """Forget it. May be called twice."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


async def await_exports(qmp: Qmp) -> None:
    """Return when the QEMU has no export of a disk for a migration any more.

    One of a bitmap keeps nobody waiting: it serves nothing that is still needed.
    """
    while True:
        names = [str(each["id"]) for each in await qmp.execute("query-block-exports")]
        if not any(is_of_disk(name) for name in names):
            return
        await asyncio.sleep(_POLL)


async def _listener(path: str) -> Process | None:
    """The QEMU that made the socket."""
    try:
        async with asyncio.timeout(1):
            connection = await connect_unix(path)
    except (OSError, TimeoutError):
        return None
    with connection:
        pid = listener_of(connection)
    return await _qemu(pid)


async def _qemu(pid: int) -> Process | None:
    """A process that made a monitor's socket, if it is a QEMU: libvirt makes them for guests."""
    name = await asyncio.to_thread(_program, pid)
    return Process(pid) if name.startswith("qemu") else None


def memory_socket(monitor: str | Path) -> Path:
    """Where QEMU's connections for memory meet, if it has several: beside its monitor."""
    path = Path(os.path.abspath(monitor))
    return path.with_name(f".{path.name}-memory")


def remove_memory_socket(monitor: str | Path) -> None:
    """Remove what a migration with several connections left there; one that cannot be stays."""
    with contextlib.suppress(OSError):
        memory_socket(monitor).unlink()


def qemu_of(qmp: Qmp) -> int:
    """The QEMU that made a monitor; 0 if another made it, or that cannot be seen."""
    return qmp.process if _program(qmp.process).startswith("qemu") else 0


def user_of(qmp: Qmp) -> tuple[int, int]:
    """User and group that a QEMU runs as; if that cannot be seen, those that own its monitor."""
    if pid := qemu_of(qmp):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status", errors="replace") as file:
            said = dict(line.split(":", 1) for line in file if line.startswith(("Uid:", "Gid:")))
            return int(said["Uid"].split()[1]), int(said["Gid"].split()[1])  # the effective ones
    owner = os.stat(qmp.path)
    return owner.st_uid, owner.st_gid


def _program(pid: int) -> str:
    """Name of a process's program; empty if it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", errors="replace") as file:
        return file.read()
    return ""


async def _lost(qmp: Qmp) -> None:
    with contextlib.suppress(QmpLost), qmp.listen("-") as events:
        await events.wait(timeout=None)


async def quit_qemu(qmp: Qmp, timeout: float) -> None:
    """Tell a QEMU to end and wait until its process has, or at least its monitor.

    Raises:
        HypervisorError: it does not end within ``timeout`` seconds.

    """
    process = await _qemu(qmp.process)
    try:
        async with asyncio.timeout(timeout):
            with contextlib.suppress(QmpLost):
                await qmp.execute("quit")
            await _lost(qmp)
            if process is not None:
                await process.wait()
    except TimeoutError:
        raise HypervisorError(f"QEMU at {qmp.path} was told to quit and does not end") from None
    finally:
        if process is not None:
            process.close()


async def end_qemu(path: str, timeout: float) -> None:
    """End the QEMU whose monitor is at ``path``, by force if it does not quit in time.

    With a ``timeout`` of 0 it is not asked. If there is none that is no error.
    """
    process = await _listener(path)
    if process is None:
        return
    try:
        with contextlib.suppress(HypervisorError, TimeoutError):
            async with asyncio.timeout(timeout), await Qmp.connect(path, timeout=timeout) as qmp:
                await qmp.execute("quit")
                await process.wait()
        process.kill(signal.SIGKILL)
        await process.wait()
        await asyncio.to_thread(remove_memory_socket, path)
    finally:
        process.close()
