"""A running guest and its disks, as xl and xenstore have them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from vmferry.api.guest import Disk
from vmferry.errors import HypervisorError
from vmferry_hypervisors.xen.devices import BlockDevice, block_device, decimal_devno, plain_location
from vmferry_hypervisors.xen.qdisk import Qdisk
from vmferry_hypervisors.xen.xenstore import XenStore

__all__ = ["Backend", "describe_disk", "describe_disks", "read_backends"]


class Backend(NamedTuple):
    """One disk's backend, by its place in xenstore.

    Attributes:
        path: e.g. ``/local/domain/0/backend/vbd/3/51712``.
        fields: the values below it.

    """

    path: str
    fields: Mapping[str, str]

    @property
    def vdev(self) -> str:
        """What the guest calls the disk, e.g. ``xvda``."""
        return self.fields.get("dev", "")

    @property
    def kind(self) -> str:
        """``vbd`` for the kernel's blkback, ``qdisk`` for QEMU's."""
        parts = self.path.split("/")
        return parts[parts.index("backend") + 1] if "backend" in parts[:-1] else ""

    @property
    def read_only(self) -> bool:
        """Whether the guest cannot write it."""
        return self.fields.get("mode", "w") != "w"

    @property
    def devno(self) -> str:
        """``major:minor`` of the device behind it, decimal; ``""`` if there is none."""
        try:
            return decimal_devno(self.fields.get("physical-device", ""))
        except ValueError:
            return ""


_FIELDS = (
    "dev",
    "params",
    "mode",
    "type",
    "device-type",
    "physical-device",
    "sectors",
    "sector-size",
)


async def read_backends(store: XenStore, domid: int) -> list[Backend]:
    """The backends of all disks of a domain, empty drives left out, in the order of their names."""
    found = []
    for number in await store.list(f"/local/domain/{domid}/device/vbd"):
        path = await store.get(f"/local/domain/{domid}/device/vbd/{number}/backend")
        fields = {name: await store.get(f"{path}/{name}") for name in _FIELDS} if path else {}
        backend = Backend(path, fields)
        if fields.get("params") or backend.devno:
            found.append(backend)
    return sorted(found, key=lambda backend: backend.vdev)


async def describe_disks(store: XenStore, domid: int) -> tuple[Disk, ...]:
    """The disks of a domain. One that cannot be migrated is described all the same."""
    return tuple([await describe_disk(each) for each in await read_backends(store, domid)])


async def describe_disk(backend: Backend) -> Disk:
    """One disk, by its backend.

    ``facts``: ``backend`` is its place in xenstore, ``kind`` its kind. For blkback ``device`` and
    ``devno`` are the block device that it writes to, ``dm`` its device-mapper name if it has one;
    for QEMU they are those of ``Qdisk``.
    """
    facts = {"backend": backend.path, "kind": backend.kind}
    if backend.kind == "qdisk":
        return _served_by_qemu(backend, facts)
    if not backend.devno:
        return Disk(
            name=backend.vdev,
            size=_front_size(backend),
            location=backend.fields.get("params", ""),
            tracker="blkback",
            read_only=backend.read_only,
            facts=facts,
        )
    device = await asyncio.to_thread(block_device, backend.devno)
    return Disk(
        name=backend.vdev,
        size=device.size,
        sector_size=device.sector_size,
        location=await plain_location(device),
        tracker="blkback",
        read_only=backend.read_only,
        facts=facts | _facts_of(device),
    )


def _served_by_qemu(backend: Backend, facts: dict[str, str]) -> Disk:
    served = Qdisk.of(backend.path, backend.fields)
    sector = backend.fields.get("sector-size", "")
    return Disk(
        name=backend.vdev,
        size=_front_size(backend),
        sector_size=int(sector) if sector.isdigit() else 512,
        location=served.location,
        tracker="qcow2",
        read_only=backend.read_only,
        facts=facts | served.facts,
    )


def _facts_of(device: BlockDevice) -> dict[str, str]:
    facts = {"device": device.path, "devno": device.devno}
    if device.dm_name:
        facts["dm"] = device.dm_name
    if device.ours:
        facts["ours"] = "yes"
    return facts


def _front_size(backend: Backend) -> int:
    """Bytes as the guest is told; a disk without a size is an error of its backend."""
    sectors = backend.fields.get("sectors", "")
    if not sectors.isdigit() or not int(sectors):
        raise HypervisorError(f"disk {backend.vdev}: its backend {backend.path} tells no size")
    return int(sectors) * 512
