"""Moving a process guest while it is stopped: what vmferry is compared with.

First the destination's process is started, while the guest still runs; the move includes that, as
vmferry's does. Then the guest finishes what it has under way and stands still, all of its disk and
memory is sent over one TCP connection, and it goes on. Nothing is compressed and nothing verified.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmferry.api.load import Moved, MoveLink
from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.daemon import DiskDaemon
from vmferry_hypervisors.process.folder import AttachedDisk, GuestFolder
from vmferry_hypervisors.process.launch import launch
from vmferry_hypervisors.process.layout import State

__all__ = ["COLD", "move_cold"]

COLD = "cold"
_PIECE = 1 << 20
_POLL = 0.001


async def move_cold(
    source: GuestFolder, state: Path, daemon: DiskDaemon, link: MoveLink, timeout: float
) -> Moved:
    """Move the guest in ``source`` to the host in ``state``; its one disk is served by ``daemon``.

    Raises:
        HypervisorError: the guest does not obey, or the copy broke off.

    """
    began = time.monotonic()
    definition = source.definition()
    (attached,) = definition.disks
    disk, copy = Path(attached.disk.location), state / "disk0.raw"
    local = msgspec.structs.replace(attached.disk, location=str(copy), facts={})
    arriving = msgspec.structs.replace(definition, disks=(AttachedDisk(local, f"file:{copy}"),))
    copy.touch()
    there = await asyncio.to_thread(launch, state, arriving, incoming=True)
    prepared = time.monotonic()
    await call(source.path, Command("quiesce"), timeout)
    await call(source.path, Command("suspend"), timeout)
    await daemon.stop()
    stopped = time.monotonic()
    pairs = [(disk, copy), (source.path / "memory", there.path / "memory")]
    sent = await _send(pairs, link)
    copied = time.monotonic()
    await _go_on(there, timeout)
    ended = time.monotonic()
    await asyncio.to_thread(source.kill)
    await asyncio.to_thread(source.remove)
    return Moved(
        phases={
            "prepare": prepared - began,
            "stop": stopped - prepared,
            "copy": copied - stopped,
            "start": ended - copied,
        },
        downtime=ended - prepared,
        guest_downtime=there.registers().switch_gap,
        sent=sent,
        location=str(copy),
    )


async def _go_on(there: GuestFolder, timeout: float) -> None:
    there.welcome()
    await call(there.path, Command("resume"), timeout)
    async with asyncio.timeout(timeout):
        while there.registers().state != State.RUNNING:
            if there.pid() is None:
                raise GuestStopped(f"guest {there.name} ended as soon as it was resumed")
            await asyncio.sleep(_POLL)


async def _send(pairs: Sequence[tuple[Path, Path]], link: MoveLink) -> int:
    """Copy files over a TCP connection; returns how many bytes went over it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = await link.through(listener.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port)) as out:
            incoming, _ = await asyncio.to_thread(listener.accept)
            with incoming:
                receiving = asyncio.create_task(asyncio.to_thread(_receive, incoming, pairs))
                try:
                    sent = await asyncio.to_thread(_push, out, [here for here, _ in pairs])
                finally:
                    out.shutdown(socket.SHUT_WR)
                    received = await receiving
    if received != sent:
        raise HypervisorError(f"{received} of {sent} bytes arrived")
    return sent


def _push(out: socket.socket, files: Sequence[Path]) -> int:
    sent = 0
    for path in files:
        with path.open("rb") as file:
            sent += out.sendfile(file)
    return sent


def _receive(incoming: socket.socket, pairs: Sequence[tuple[Path, Path]]) -> int:
    buffer = memoryview(bytearray(_PIECE))
    received = 0
    for here, there in pairs:
        left = here.stat().st_size
        with there.open("r+b") as file:
            while left and (count := incoming.recv_into(buffer[: min(left, _PIECE)])):
                file.write(buffer[:count])
                left -= count
                received += count
    return received
