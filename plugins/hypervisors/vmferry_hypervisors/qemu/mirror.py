"""QEMU's own way to move a guest with its disk: what vmferry is compared with.

Disks are mirrored into NBD exports of the destination's QEMU until both sides agree, then the
memory is sent, and the mirrors are ended while the guest stands still
(``pause-before-switchover``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmferry.api.load import Moved, MoveLink
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.launch import fill_command, start_qemu
from vmferry_hypervisors.qemu.remains import quit_qemu
from vmferry_support.commands import CommandFailed, CommandMissing, run
from vmferry_support.qmp import Listener, Qmp, QmpRefused

if TYPE_CHECKING:
    from vmferry_hypervisors.qemu.two_hosts import GuestOptions, TwoHosts

__all__ = ["MIRROR", "move_by_mirror"]

MIRROR = "qemu-mirror"
_UUID = "00000000-0000-0000-0000-000000000001"
_GRANULARITY = 4096
_CAPABILITIES = ("events", "return-path", "pause-before-switchover")


async def move_by_mirror(trial: TwoHosts[Any], link: MoveLink) -> Moved:
    """Move a trial's guest with its disks.

    Its first phase is to start the destination's QEMU, and its last to end the source's, as both
    are part of a move by vmferry.

    Cancelled before the disks agree, it ends the mirrors and leaves the guest running where it is.

    Raises:
        HypervisorError, QmpError: QEMU refused or failed.

    """
    copies = {name: trial.folder / f"copy-{name}.raw" for name in trial.disks}
    began = time.monotonic()
    await _prepare(trial, copies)
    prepared = time.monotonic() - began
    async with (
        await Qmp.connect(str(trial.socket("source"))) as source,
        await Qmp.connect(str(trial.socket("destination"))) as there,
    ):
        with source.listen() as events, there.listen("MIGRATION") as arrived:
            moving = _Mirror(source, there, events, arrived, link, list(copies), trial.options)
            phases = await moving.run()
    return Moved(
        phases={"prepare": prepared, **phases},
        downtime=moving.downtime,
        sent=moving.sent,
        location=str(copies["disk0"]),
    )


async def _prepare(trial: TwoHosts[Any], copies: Mapping[str, Path]) -> None:
    """The destination's QEMU, waiting, with local disks of the same sizes."""
    values = {
        "name": trial.options.guest,
        "uuid": _UUID,
        "memory": str(trial.options.memory >> 20),
        "vcpus": "1",
        "machine": trial.options.machine,
        **{f"disk:{name}": _node(name) for name in copies},
    }
    words = fill_command(trial.command("destination"), values)
    for name, copy in copies.items():
        with copy.open("xb") as file:
            os.truncate(file.fileno(), trial.sizes[name])
        below = {"driver": "file", "filename": str(copy), "discard": "unmap"}
        top = {"driver": "raw", "node-name": _node(name), "file": below, "discard": "unmap"}
        words += ["-blockdev", json.dumps(top)]
    started = await start_qemu([*words, "-S", "-incoming", "defer"], trial.socket("destination"))
    await (await started.connected(trial.options.timeout)).close()
    started.forget()


def _node(disk: str) -> str:
    """Of a disk, in both QEMUs."""
    return f"{disk}-node"


def _target(disk: str) -> str:
    """In the source's QEMU, of the export that a disk is mirrored into."""
    return f"{disk}-copy"


class _Mirror:
    """Mirror, migrate, end the mirror, go on, end the QEMU that is left.

    Attributes:
        downtime: seconds from the guest's stop until it was let run, after ``run``.
        sent: bytes of disks and memory; ``None`` if there is no ``ss`` to tell.

    """

    def __init__(
        self,
        source: Qmp,
        there: Qmp,
        events: Listener,
        arrived: Listener,
        link: MoveLink,
        disks: Sequence[str],
        options: GuestOptions,
    ) -> None:
        self._source, self._there = source, there
        self._events, self._arrived = events, arrived
        self._link, self._disks = link, disks
        self._downtime_limit, self._timeout = options.downtime_limit, options.timeout
        self._stopped = self.downtime = 0.0
        self.sent: int | None = None

    async def run(self) -> dict[str, float]:
        """Do it all; returns the seconds of each phase."""
        began = time.monotonic()
        await self._mirror()
        mirrored = time.monotonic()
        await self._migrate()
        stopped = time.monotonic()
        await self._switch()
        switched = time.monotonic()
        await quit_qemu(self._source, self._timeout)
        ended = time.monotonic()
        return {
            "mirror": mirrored - began,
            "migrate": stopped - mirrored,
            "stop": switched - stopped,
            "end": ended - switched,
        }

    async def _mirror(self) -> None:
        port = str(_free_port())
        here = {"host": "127.0.0.1", "port": port}
        await self._there.execute("nbd-server-start", addr={"type": "inet", "data": here})
        server = {"type": "inet", **here, "port": str(await self._link.through(int(port)))}
        try:
            for disk in self._disks:
                await self._copy(disk, server)
            await _until_all(self._events, "BLOCK_JOB_READY", self._disks)
        except asyncio.CancelledError:
            await self._give_up()
            raise
        if (carried := await _sent_to(server["port"])) is not None:
            self.sent = carried - sum((await self._jobs()).values())

    async def _jobs(self) -> dict[str, int]:
        """The mirrors, and the bytes that each is done with: holes, too, which are not sent."""
        jobs = await self._source.execute("query-block-jobs")
        return {job["device"]: job["offset"] for job in jobs if job["device"] in self._disks}

    async def _give_up(self) -> None:
        """End mirrors as they are; what the destination has of the disks is of no use."""
        jobs = await self._jobs()
        for disk in jobs:
            await self._source.execute("block-job-cancel", device=disk, force=True)
        if jobs:
            await _until_all(self._events, "BLOCK_JOB_CANCELLED", jobs)
        for disk in self._disks:
            with contextlib.suppress(QmpRefused):  # it has not come to that
                await self._source.execute("blockdev-del", node_name=_target(disk))

    async def _copy(self, disk: str, server: Mapping[str, str]) -> None:
        """Begin to mirror a disk; the job has its name."""
        await self._there.execute(
            "block-export-add", type="nbd", id=disk, node_name=_node(disk), writable=True, name=disk
        )
        nbd = {"driver": "nbd", "node-name": _target(disk), "export": disk, "server": server}
        await self._source.execute("blockdev-add", nbd)
        await self._source.execute(
            "blockdev-mirror",
            job_id=disk,
            device=_node(disk),
            target=_target(disk),
            sync="full",
            speed=self._link.bandwidth,
            granularity=_GRANULARITY,
        )

    async def _migrate(self) -> None:
        """Send the memory; returns when the guest has been stopped."""
        on = [{"capability": name, "state": True} for name in _CAPABILITIES]
        await self._source.execute("migrate-set-capabilities", capabilities=on)
        late = {"capability": "late-block-activate", "state": True}
        await self._there.execute("migrate-set-capabilities", capabilities=[*on[:2], late])
        limits = {
            "max-bandwidth": self._link.bandwidth,
            "downtime-limit": round(1000 * self._downtime_limit),
        }
        await self._source.execute("migrate-set-parameters", limits)
        port = _free_port()
        await self._there.execute("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
        way = await self._link.through(port)
        with self._source.listen("STOP") as stops:
            await self._source.execute("migrate", uri=f"tcp:127.0.0.1:{way}")
            await _until(self._events, "MIGRATION", status="pre-switchover")
            self._stopped = (await stops.wait(timeout=None)).at

    async def _switch(self) -> None:
        for disk in self._disks:
            await self._source.execute("block-job-cancel", device=disk)
        ended = await _until_all(self._events, "BLOCK_JOB_COMPLETED", self._disks)
        await self._there.execute("nbd-server-stop")
        await self._source.execute("migrate-continue", state="pre-switchover")
        await _until(self._events, "MIGRATION", status="completed")
        await _until(self._arrived, "MIGRATION", status="completed")
        await self._there.execute("cont")
        self.downtime = asyncio.get_running_loop().time() - self._stopped
        ram = (await self._source.execute("query-migrate"))["ram"]
        if self.sent is not None:
            self.sent += sum(int(data["offset"]) for data in ended) + int(ram["transferred"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _sent_to(port: str) -> int | None:
    """Bytes that connections to a port have carried there, by ss(8); ``None`` if there is none."""
    try:
        said = await run("ss", "-tinH", "dport", "=", f":{port}")
    except (CommandMissing, CommandFailed):
        return None
    return sum(int(count) for count in re.findall(r"bytes_sent:(\d+)", said))


async def _until(events: Listener, name: str, **data: Any) -> None:
    def is_it(event: Any) -> bool:
        _check(event)
        return event.name == name and all(event.data.get(key) == data[key] for key in data)

    await events.wait(is_it, timeout=None)


async def _until_all(events: Listener, name: str, jobs: Iterable[str]) -> list[Mapping[str, Any]]:
    """Wait for an event of each of the jobs, in whatever order they come; returns their data."""
    left, found = set(jobs), []

    def is_last(event: Any) -> bool:
        _check(event)
        if event.name == name and event.data.get("device") in left:
            left.discard(event.data["device"])
            found.append(event.data)
        return not left

    await events.wait(is_last, timeout=None)
    return found


def _check(event: Any) -> None:
    if event.data.get("status") == "failed" or event.data.get("error"):
        raise HypervisorError(f"QEMU's migration failed: {event.name} {event.data}")
