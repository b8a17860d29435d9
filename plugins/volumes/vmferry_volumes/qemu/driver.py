"""The plugin, and what stands behind its volumes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated, ClassVar, Literal, NoReturn

import msgspec

from vmferry.api.plugin import Grade, Options
from vmferry.api.volume import Access, Geometry, Volume, VolumeCapabilities, VolumeDriver
from vmferry.errors import VolumeError, VolumeGeometry, VolumeMissing
from vmferry_support.nbd import ALLOCATION, NbdClient, NbdError, NbdLost
from vmferry_support.outlast import finished
from vmferry_support.qemu_exports import DISK, QemuExport, QemuExports
from vmferry_support.qemu_nodes import Node, NodeMissing, find_node
from vmferry_support.qmp import Qmp, QmpAbsent, QmpError, QmpRefused
from vmferry_volumes.nbd_volume import Backend, NbdVolume
from vmferry_volumes.qemu.location import NodeLocation
from vmferry_volumes.qemu.plain import open_plain

__all__ = ["QemuDriver", "QemuOptions"]

_SECTOR = 512


class QemuOptions(Options, frozen=True, kw_only=True):
    """Options of the ``qemu`` volume plugin."""

    connect_timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for QEMU's monitor to greet",
            extra={"unit": "seconds"},
        ),
    ] = 10.0
    read: Annotated[
        Literal["auto", "nbd"],
        msgspec.Meta(
            description="who reads: auto reads a raw disk's file or device itself, and leaves all "
            "others to QEMU; nbd leaves all to QEMU"
        ),
    ] = "auto"


class _Exported(Backend):
    """An export of ours in a running QEMU, and all that must be undone."""

    def __init__(self, what: str, client: NbdClient, undo: AsyncExitStack) -> None:
        self.what = what
        self._client, self._undo = client, undo

    async def enter(self) -> NbdClient:
        return self._client

    def leave(self) -> None:
        return

    async def release(self, volume: NbdVolume) -> None:
        await finished(self._undo.aclose())

    def explain(self, lost: NbdLost) -> VolumeError:
        return VolumeError(f"{self.what} can no longer be read: {lost}; is QEMU running?")


class QemuDriver(VolumeDriver[QemuOptions]):
    """Reads a block node of a QEMU whose monitor socket is given, by an NBD export of ours.

    A raw disk's file is read itself, as QEMU has opened it; there is an export all the same, which
    tells that this QEMU is still needed. What is read is what the guest would read, also while the
    guest is stopped, and after its migration has completed.
    """

    api_version = 1
    name = "qemu"
    summary = "the disk of a running QEMU, of whatever format, read by NBD; found by its monitor"
    options_type = QemuOptions
    capabilities: ClassVar[VolumeCapabilities] = VolumeCapabilities(holes=Grade.NATIVE)
    options: QemuOptions

    async def probe(self, location: str) -> Geometry:
        """Size of the node's disk."""
        async with AsyncExitStack() as undo:
            place = NodeLocation.parse(location)
            return _geometry(location, await _found(await self._connected(place, undo), place))

    async def open(self, location: str, access: Access) -> Volume:
        """Add an export for reading; closing the volume removes it."""
        place = NodeLocation.parse(location)
        if access is Access.WRITE:
            raise VolumeError(f"{location} is written by its guest alone; it can only be read")
        async with AsyncExitStack() as undo:
            qmp = await self._connected(place, undo)
            geometry = _geometry(location, await _found(qmp, place))
            export = await _exported(qmp, place, undo)
            if self.options.read == "auto":
                plain = await open_plain(qmp, place.node, geometry.size, undo)
                if plain is not None:
                    return plain
            client = await _client(place, export, undo)
            if client.export.size < geometry.size:
                raise VolumeGeometry(f"{location} is exported with {client.export.size} bytes")
            unit = Geometry(geometry.size, max(_SECTOR, client.export.unit))
            return NbdVolume(_Exported(location, client, undo.pop_all()), unit, writable=False)

    async def _connected(self, place: NodeLocation, undo: AsyncExitStack) -> Qmp:
        try:
            qmp = await Qmp.connect(place.qmp, timeout=self.options.connect_timeout)
        except QmpAbsent as error:
            raise VolumeMissing(f"{place}: {error}") from error
        except QmpError as error:
            raise VolumeError(f"{place}: {error}") from error
        return await undo.enter_async_context(qmp)

    async def check_create(self, location: str, geometry: Geometry) -> None:
        """Refuse."""
        _not_made(location)

    async def create(self, location: str, geometry: Geometry) -> Volume:
        """Refuse."""
        _not_made(location)

    async def remove(self, location: str) -> None:
        """Leave it alone."""


def _not_made(location: str) -> NoReturn:
    raise VolumeError(
        f"{location}: a running QEMU's disk cannot be made; choose the volume raw or qcow2"
    )


async def _found(qmp: Qmp, place: NodeLocation) -> Node:
    try:
        return await find_node(qmp, place.node)
    except NodeMissing as error:
        raise VolumeMissing(str(error)) from error
    except QmpError as error:
        raise VolumeError(f"{place}: {error}") from error


def _geometry(location: str, node: Node) -> Geometry:
    if not node.size or node.size % _SECTOR:
        raise VolumeGeometry(f"{location} has {node.size} bytes; it cannot be a disk")
    return Geometry(node.size, _SECTOR)


async def _exported(qmp: Qmp, place: NodeLocation, undo: AsyncExitStack) -> QemuExport:
    exports = QemuExports(qmp, place.nbd)
    try:
        await exports.sweep()
        export = await exports.add(place.node, DISK)
    except QmpRefused as error:
        raise VolumeError(f"{place} cannot be exported: {error.reason}") from error
    except QmpError as error:
        raise VolumeError(f"{place} cannot be exported: {error}") from error
    undo.push_async_callback(exports.remove, export.name)
    return export


async def _client(place: NodeLocation, export: QemuExport, undo: AsyncExitStack) -> NbdClient:
    try:
        client = await NbdClient.connect(export.socket, export.name, contexts=[ALLOCATION])
    except NbdError as error:
        raise VolumeError(f"{place} cannot be read: {error}") from error
    return await undo.enter_async_context(client)
