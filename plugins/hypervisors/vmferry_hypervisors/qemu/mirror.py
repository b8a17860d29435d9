"""QEMU's own way to move a guest with its disk: what vmferry is compared with.

Disks are mirrored into NBD exports of the destination's QEMU until both sides agree, then the
memory is sent, and the mirrors are ended while the guest stands still
(``pause-before-switchover``).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmferry.api.load import Moved, MoveLink
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.launch import fill_command, start_qemu
from vmferry_support.qmp import Listener, Qmp

if TYPE_CHECKING:
    from vmferry_hypervisors.qemu.two_hosts import TwoHosts

__all__ = ["MIRROR", "move_by_mirror"]

MIRROR = "qemu-mirror"
_UUID = "00000000-0000-0000-0000-000000000001"
_GRANULARITY = 4096
_DOWNTIME = 0.03
_POLL = 0.05
_CAPABILITIES = ("events", "return-path", "pause-before-switchover")


async def move_by_mirror(trial: TwoHosts[Any], link: MoveLink) -> Moved:
    """Move a trial's guest with its disks.

    Raises:
        HypervisorError: QEMU refused or failed, or the guest is not heard of again.

    """
    copies = {name: trial.folder / f"copy-{name}.raw" for name in trial.disks}
    await _prepare(trial, copies)
    async with (
        await Qmp.connect(str(trial.socket("source"))) as source,
        await Qmp.connect(str(trial.socket("destination"))) as there,
    ):
        with source.listen() as events, there.listen("MIGRATION") as arrived:
            moving = _Mirror(source, there, events, arrived, link, list(copies))
            phases, sent = await moving.run()
    return Moved(
        phases=phases,
        downtime=phases["stop"],
        guest_downtime=await _gap(trial),
        sent=sent,
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


class _Mirror:
    """Mirror, migrate, end the mirror, go on."""

    def __init__(
        self,
        source: Qmp,
        there: Qmp,
        events: Listener,
        arrived: Listener,
        link: MoveLink,
        disks: Sequence[str],
    ) -> None:
        self._source, self._there = source, there
        self._events, self._arrived = events, arrived
        self._link, self._disks = link, disks

    async def run(self) -> tuple[dict[str, float], int]:
        """Seconds of each phase, and bytes that were moved."""
        began = time.monotonic()
        await self._mirror()
        mirrored = time.monotonic()
        await self._migrate()
        stopped = time.monotonic()
        sent = await self._switch()
        ended = time.monotonic()
        phases = {
            "mirror": mirrored - began,
            "migrate": stopped - mirrored,
            "stop": ended - stopped,
        }
        return phases, sent

    async def _mirror(self) -> None:
        port = str(_free_port())
        here = {"host": "127.0.0.1", "port": port}
        await self._there.execute("nbd-server-start", addr={"type": "inet", "data": here})
        server = {"type": "inet", **here, "port": str(await self._link.through(int(port)))}
        for disk in self._disks:
            await self._copy(disk, server)
        await _until_all(self._events, "BLOCK_JOB_READY", self._disks)

    async def _copy(self, disk: str, server: Mapping[str, str]) -> None:
        """Begin to mirror a disk; the job has its name."""
        await self._there.execute(
            "block-export-add", type="nbd", id=disk, node_name=_node(disk), writable=True, name=disk
        )
        target = f"{disk}-copy"
        nbd = {"driver": "nbd", "node-name": target, "export": disk, "server": server}
        await self._source.execute("blockdev-add", nbd)
        await self._source.execute(
            "blockdev-mirror",
            job_id=disk,
            device=_node(disk),
            target=target,
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
            "downtime-limit": round(1000 * _DOWNTIME),
        }
        await self._source.execute("migrate-set-parameters", limits)
        port = _free_port()
        await self._there.execute("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
        way = await self._link.through(port)
        await self._source.execute("migrate", uri=f"tcp:127.0.0.1:{way}")
        await _until(self._events, "MIGRATION", status="pre-switchover")

    async def _switch(self) -> int:
        jobs = await self._source.execute("query-block-jobs")
        for disk in self._disks:
            await self._source.execute("block-job-cancel", device=disk)
        await _until_all(self._events, "BLOCK_JOB_COMPLETED", self._disks)
        await self._there.execute("nbd-server-stop")
        await self._source.execute("migrate-continue", state="pre-switchover")
        await _until(self._events, "MIGRATION", status="completed")
        await _until(self._arrived, "MIGRATION", status="completed")
        await self._there.execute("cont")
        ram = (await self._source.execute("query-migrate"))["ram"]
        return int(sum(job["offset"] for job in jobs) + ram["transferred"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until(events: Listener, name: str, **data: Any) -> None:
    def is_it(event: Any) -> bool:
        _check(event)
        return event.name == name and all(event.data.get(key) == data[key] for key in data)

    await events.wait(is_it, timeout=None)


async def _until_all(events: Listener, name: str, jobs: Iterable[str]) -> None:
    """Wait for an event of each of the jobs, in whatever order they come."""
    left = set(jobs)

    def is_last(event: Any) -> bool:
        _check(event)
        if event.name == name:
            left.discard(event.data.get("device"))
        return not left

    await events.wait(is_last, timeout=None)


def _check(event: Any) -> None:
    if event.data.get("status") == "failed" or event.data.get("error"):
        raise HypervisorError(f"QEMU's migration failed: {event.name} {event.data}")


async def _gap(trial: TwoHosts[Any]) -> float:
    """How long the guest said nothing between its last word there and its first here."""
    try:
        async with asyncio.timeout(trial.options.timeout):
            while True:
                if (gap := (await trial.status()).switch_gap) is not None:
                    return gap
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise HypervisorError(f"guest {trial.options.guest} is not heard of any more") from None
