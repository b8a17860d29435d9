"""The ``export`` tracker: the guest's disk is served by vmferry's own NBD export.

It talks to the control socket of the process that serves the disk (``migrate export``). That one
marks each write at its dispatch and again before its reply, so a harvest needs no barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk
from vmferry.api.plugin import Grade, Options
from vmferry.api.tracker import Tracker, TrackerCapabilities
from vmferry.dirtymap import DirtyMap
from vmferry.errors import (
    ConnectionLost,
    LinkError,
    PeerError,
    ProtocolError,
    TrackerError,
    VmferryError,
)
from vmferry_trackers.export_client import ControlClient, DiskStatus, Refused, Reply

__all__ = ["ExportOptions", "ExportTracker"]


class ExportOptions(Options, frozen=True, kw_only=True):
    """How long the ``export`` tracker waits for the export's process."""

    connect_timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for the control socket to accept",
            extra={"unit": "seconds"},
        ),
    ] = 5.0
    request_timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for an answer, also for the writes under way at the start",
            extra={"unit": "seconds"},
        ),
    ] = 30.0
    drain_timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for the writes of the suspended guest to end",
            extra={"unit": "seconds"},
        ),
    ] = 30.0


class ExportTracker(Tracker[ExportOptions]):
    """Tracks a disk with the facts ``control``, a control socket, and ``export``, a name there.

    If the connection breaks, the next call connects again and goes on with the same marks, unless
    another tracker began meanwhile: then tracking is lost.
    """

    api_version = 1
    name = "export"
    summary = "the disk is served by vmferry's own NBD export, which marks every write"
    options_type = ExportOptions
    capabilities: ClassVar[TrackerCapabilities] = TrackerCapabilities(
        live=Grade.NATIVE, discards=Grade.NATIVE, survives=Grade.EMULATED
    )
    options: ExportOptions

    def __init__(self, options: ExportOptions | None = None) -> None:
        super().__init__(options)
        self._client: ControlClient | None = None
        self._disk: Disk | None = None
        self._session = ""
        self._block_size = 0
        self._received = 0

    async def check(self, disk: Disk, block_size: int) -> Sequence[Finding]:
        """Missing facts, no socket, no such export, another size, or tracked by another job."""
        missing = [fact for fact in ("control", "export") if not disk.facts.get(fact)]
        if missing:
            return [_fact_missing(disk, fact) for fact in missing]
        try:
            disks = await self._look(disk.facts["control"])
        except VmferryError as error:
            return [
                Finding.error(
                    "export-unreachable",
                    f"disk {disk.name!r}: {error}",
                    "start the export, or correct the disk's fact 'control'",
                )
            ]
        return _judge(disk, disks)

    async def start(self, disk: Disk, block_size: int) -> int:
        """Begin to track; the export may use larger blocks on a disk of many terabytes."""
        await self.stop()
        try:
            control, export = disk.facts["control"], disk.facts["export"]
        except KeyError as error:
            raise TrackerError(_fact_missing(disk, error.args[0]).text) from None
        self._disk = disk
        try:
            self._client = await ControlClient.connect(control, self.options.connect_timeout)
            await self._verify(disk, export)
            reply = await self._client.call(
                "start", self.options.request_timeout, disk=export, block_size=block_size
            )
            # Before this arrives, the export undoes the start if the connection ends.
            await self._client.call("ack", self.options.request_timeout, disk=export)
        except BaseException as error:
            await self._hang_up()
            if isinstance(error, LinkError | PeerError | ProtocolError):
                raise TrackerError(f"disk {disk.name!r} cannot be tracked: {error}") from error
            raise
        self._session, self._block_size, self._received = reply.session, reply.block_size, 0
        return reply.block_size

    async def harvest(self) -> DirtyMap:
        """Take what was written since the last harvest.

        The export keeps the map until the next harvest says that this one arrived.
        """
        disk = self._tracked()
        reply = await self._call("harvest", self.options.request_timeout)
        try:
            taken = DirtyMap.decode(reply.map, size=disk.size, block_size=self._block_size)
        except ProtocolError as error:
            raise TrackerError(f"disk {disk.name!r}: the export sent no map: {error}") from error
        self._received = reply.number
        return taken

    async def drain(self) -> None:
        """Wait until all that the suspended guest had sent is done and answered."""
        patience = self.options.drain_timeout
        await self._call("drain", patience + self.options.request_timeout, timeout=patience)

    async def stop(self) -> None:
        """End tracking at the export and hang up."""
        session, self._session = self._session, ""
        try:
            if session and self._disk is not None:
                await self._end(self._disk, session)
        finally:
            await self._hang_up()

    async def _look(self, control: str) -> dict[str, DiskStatus]:
        client = await ControlClient.connect(control, self.options.connect_timeout)
        try:
            return (await client.call("status", self.options.request_timeout)).disks
        finally:
            await client.close()

    async def _verify(self, disk: Disk, export: str) -> None:
        assert self._client is not None
        disks = (await self._client.call("status", self.options.request_timeout)).disks
        if export in disks and disks[export].size != disk.size:
            raise TrackerError(_size_differs(disk, disks[export]).text)

    async def _call(self, op: str, wait: float, **fields: object) -> Reply:
        disk = self._tracked()
        try:
            try:
                return await self._attempt(disk, op, wait, fields)
            except ConnectionLost:
                await self._hang_up()
                return await self._attempt(disk, op, wait, fields)
        except (LinkError, PeerError, ProtocolError) as error:
            raise TrackerError(f"tracking disk {disk.name!r} failed: {error}") from error

    async def _attempt(self, disk: Disk, op: str, wait: float, fields: dict[str, object]) -> Reply:
        if self._client is None:
            self._client = await self._attached(disk)
        return await self._client.call(
            op, wait, disk=disk.facts["export"], confirm=self._received, **fields
        )

    async def _attached(self, disk: Disk) -> ControlClient:
        client = await ControlClient.connect(disk.facts["control"], self.options.connect_timeout)
        try:
            await client.call(
                "attach",
                self.options.request_timeout,
                disk=disk.facts["export"],
                session=self._session,
            )
        except BaseException:
            await client.close()
            raise
        return client

    async def _end(self, disk: Disk, session: str) -> None:
        try:
            try:
                await self._request_stop(disk, session)
            except ConnectionLost:
                await self._hang_up()
                await self._request_stop(disk, session)
        except ConnectionLost:
            return  # the export's process is gone, and its marks with it
        except Refused as refused:
            if refused.code not in {"not-tracking", "no-disk", "busy"}:
                raise TrackerError(f"disk {disk.name!r}: {refused}") from refused
        except (LinkError, ProtocolError) as error:
            raise TrackerError(f"tracking disk {disk.name!r} cannot be ended: {error}") from error

    async def _request_stop(self, disk: Disk, session: str) -> None:
        if self._client is None:
            self._client = await ControlClient.connect(
                disk.facts["control"], self.options.connect_timeout
            )
        await self._client.call(
            "stop", self.options.request_timeout, disk=disk.facts["export"], session=session
        )

    async def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _tracked(self) -> Disk:
        if self._disk is None or not self._session:
            raise TrackerError("the tracker was not started")
        return self._disk


def _judge(disk: Disk, disks: dict[str, DiskStatus]) -> list[Finding]:
    export = disk.facts["export"]
    status = disks.get(export)
    if status is None:
        known = ", ".join(sorted(disks)) or "none"
        return [
            Finding.error(
                "export-unknown",
                f"disk {disk.name!r}: there is no export named {export!r}; there are: {known}",
                "correct the disk's fact 'export'",
            )
        ]
    findings = []
    if status.size != disk.size:
        findings.append(_size_differs(disk, status))
    if status.tracked:
        findings.append(
            Finding.error(
                "export-tracked",
                f"disk {disk.name!r}: export {export!r} is being tracked by another migration",
                "let that migration end, or end it",
            )
        )
    return findings


def _size_differs(disk: Disk, status: DiskStatus) -> Finding:
    return Finding.error(
        "export-size",
        f"disk {disk.name!r} has {disk.size} bytes, but its export has {status.size}",
        "correct the disk's facts: they name another disk's export",
    )


def _fact_missing(disk: Disk, fact: str) -> Finding:
    meaning = {"control": "path of its export's control socket", "export": "name of its export"}
    return Finding.error(
        f"export-no-{fact}",
        f"disk {disk.name!r} has no fact {fact!r}, the {meaning[fact]}",
        "serve the disk with 'migrate export', or choose the tracker that suits its backend",
    )
