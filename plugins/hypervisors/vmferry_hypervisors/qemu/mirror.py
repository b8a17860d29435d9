"""QEMU's own way to move a guest with its disk: what vmferry is compared with.

The disk is mirrored into an NBD export of the destination's QEMU until both agree, then the memory
is sent, and the mirror is ended while the guest stands still (``pause-before-switchover``).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmferry.api.load import Moved, MoveLink
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.launch import fill_command, start_qemu
from vmferry_support.qmp import Listener, Qmp

if TYPE_CHECKING:
    from vmferry_hypervisors.qemu.trial import QemuTrial

__all__ = ["MIRROR", "move_by_mirror"]

MIRROR = "qemu-mirror"
_UUID = "00000000-0000-0000-0000-000000000001"
_GRANULARITY = 4096
_DOWNTIME = 0.03
_POLL = 0.05
_CAPABILITIES = ("events", "return-path", "pause-before-switchover")


async def move_by_mirror(trial: QemuTrial, link: MoveLink) -> Moved:
    """Move a trial's guest with its first disk.

    Raises:
        HypervisorError: QEMU refused or failed, or the guest is not heard of again.

    """
    size = await asyncio.to_thread(os.path.getsize, trial.disks["disk0"])
    copy = trial.folder / "copy-disk0.raw"
    await _prepare(trial, copy, size)
    async with (
        await Qmp.connect(str(trial.socket("source"))) as source,
        await Qmp.connect(str(trial.socket("destination"))) as there,
    ):
        with source.listen() as events, there.listen("MIGRATION") as arrived:
            moving = _Mirror(source, there, events, arrived, link)
            phases, sent = await moving.run()
    return Moved(
        phases=phases,
        downtime=phases["stop"],
        guest_downtime=await _gap(trial),
        sent=sent,
        location=str(copy),
    )


async def _prepare(trial: QemuTrial, copy: Path, size: int) -> None:
    """The destination's QEMU, waiting, with a local disk of the same size."""
    with copy.open("xb") as file:
        os.truncate(file.fileno(), size)
    node = {"driver": "file", "filename": str(copy), "discard": "unmap"}
    top = {"driver": "raw", "node-name": "disk0-node", "file": node, "discard": "unmap"}
    values = {
        "name": trial.options.guest,
        "uuid": _UUID,
        "memory": str(trial.options.memory >> 20),
        "vcpus": "1",
        "machine": trial.options.machine,
        "disk:disk0": "disk0-node",
    }
    words = fill_command(trial.command("destination"), values)
    words += ["-blockdev", json.dumps(top), "-S", "-incoming", "defer"]
    started = await start_qemu(words, trial.socket("destination"))
    await (await started.connected(trial.options.timeout)).close()
    started.forget()


class _Mirror:
    """Mirror, migrate, end the mirror, go on."""

    def __init__(
        self, source: Qmp, there: Qmp, events: Listener, arrived: Listener, link: MoveLink
    ) -> None:
        self._source, self._there = source, there
        self._events, self._arrived = events, arrived
        self._link = link

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
        await self._there.execute(
            "block-export-add",
            type="nbd",
            id="copy",
            node_name="disk0-node",
            writable=True,
            name="copy",
        )
        server = {"type": "inet", **here, "port": str(await self._link.through(int(port)))}
        nbd = {"driver": "nbd", "node-name": "copy", "export": "copy", "server": server}
        await self._source.execute("blockdev-add", nbd)
        await self._source.execute(
            "blockdev-mirror",
            job_id="copying",
            device="disk0-node",
            target="copy",
            sync="full",
            speed=self._link.bandwidth,
            granularity=_GRANULARITY,
        )
        await _until(self._events, "BLOCK_JOB_READY")

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
        (job,) = await self._source.execute("query-block-jobs")
        await self._source.execute("block-job-cancel", device="copying")
        await _until(self._events, "BLOCK_JOB_COMPLETED")
        await self._there.execute("nbd-server-stop")
        await self._source.execute("migrate-continue", state="pre-switchover")
        await _until(self._events, "MIGRATION", status="completed")
        await _until(self._arrived, "MIGRATION", status="completed")
        await self._there.execute("cont")
        ram = (await self._source.execute("query-migrate"))["ram"]
        return int(job["offset"] + ram["transferred"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until(events: Listener, name: str, **data: Any) -> None:
    def is_it(event: Any) -> bool:
        if event.data.get("status") == "failed" or event.data.get("error"):
            raise HypervisorError(f"QEMU's migration failed: {event.name} {event.data}")
        return event.name == name and all(event.data.get(key) == data[key] for key in data)

    await events.wait(is_it, timeout=None)


async def _gap(trial: QemuTrial) -> float:
    """How long the guest said nothing between its last word there and its first here."""
    try:
        async with asyncio.timeout(trial.options.timeout):
            while not trial.record.switches:
                await asyncio.sleep(_POLL)
                await asyncio.to_thread(trial.record.update)
    except TimeoutError:
        raise HypervisorError(f"guest {trial.options.guest} is not heard of any more") from None
    return float(trial.record.switches[-1])
