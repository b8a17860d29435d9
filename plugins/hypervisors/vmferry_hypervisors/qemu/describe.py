"""A running guest as QMP tells it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from vmferry.api.guest import Disk, Guest
from vmferry_hypervisors.qemu.config import Config
from vmferry_support.qmp import Qmp, QmpRefused

__all__ = ["Drive", "describe_guest", "list_drives", "read_config"]

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_FLASH = "/machine/system.flash"
Json = Mapping[str, Any]


class Drive(NamedTuple):
    """A block device of the guest with a medium.

    Attributes:
        name: of the disk: the device's id, or the backend's, or a number.
        node: name of its root node; ``#block...`` if QEMU made it up.
        driver: of that node, ``raw`` or ``qcow2`` for instance.
        size: bytes.
        sector_size: bytes.
        read_only: the guest cannot write it.
        removable: its medium can be taken out.
        flash: it is the firmware's, not a disk.
        file: what holds it, as QEMU names it.
        detect_zeroes: how the node is set.

    """

    name: str
    node: str
    driver: str
    size: int
    sector_size: int
    read_only: bool
    removable: bool
    flash: bool
    file: str
    detect_zeroes: str


async def list_drives(qmp: Qmp) -> list[Drive]:
    """All block devices of the guest that have a medium, in QEMU's order."""
    blocks = await qmp.execute("query-block")
    attached = [one for one in blocks if one.get("inserted") and one.get("qdev")]
    names = _unique(_name(one, number) for number, one in enumerate(attached))
    return [await _drive(qmp, name, one) for name, one in zip(names, attached, strict=True)]


def _name(block: Json, number: int) -> str:
    """Of ``/machine/peripheral/vda/virtio-backend`` ``vda``."""
    found = re.match(r"/machine/peripheral/([^/]+)", str(block["qdev"]))
    name = found[1] if found else str(block.get("device") or "")
    name = _UNSAFE.sub("-", name).lstrip("._-")[:60]
    return name or f"disk{number}"


def _unique(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        number = 1
        unique = name
        while unique in seen:
            number += 1
            unique = f"{name}-{number}"
        seen.add(unique)
        yield unique


async def _drive(qmp: Qmp, name: str, block: Json) -> Drive:
    inserted, qdev = block["inserted"], str(block["qdev"])
    return Drive(
        name=name,
        node=inserted["node-name"],
        driver=inserted["drv"],
        size=inserted["image"]["virtual-size"],
        sector_size=await _sector_size(qmp, qdev.removesuffix("/virtio-backend")),
        read_only=bool(inserted["ro"]),
        removable=bool(block.get("removable")),
        flash=qdev.startswith(_FLASH),
        file=str(inserted.get("file") or ""),
        detect_zeroes=str(inserted.get("detect_zeroes") or "off"),
    )


async def _sector_size(qmp: Qmp, device: str) -> int:
    return int(await _property(qmp, device, "logical_block_size") or 512)


async def _property(qmp: Qmp, path: str, name: str) -> Any:
    """A property of a device, ``None`` if it has none of that name."""
    try:
        return await qmp.execute("qom-get", path=path, property=name)
    except QmpRefused:
        return None


async def describe_guest(qmp: Qmp, name: str, hypervisor: str) -> Guest:
    """The whole guest; ``name`` is what it is known by."""
    config = await read_config(qmp)
    memory = await qmp.execute("query-memory-size-summary")
    drives = [drive for drive in await list_drives(qmp) if not drive.flash]
    return Guest(
        name=name,
        uuid=_uuid(await qmp.execute("query-uuid")),
        hypervisor=hypervisor,
        memory=memory["base-memory"] + memory.get("plugged-memory", 0),
        vcpus=len(await qmp.execute("query-cpus-fast")),
        disks=tuple(_disk(drive, qmp.path) for drive in drives),
        facts={"qemu": ".".join(map(str, config.qemu)), "machine": config.machine},
        config=msgspec.json.encode(config),
    )


def _uuid(answer: Any) -> str:
    """QEMU tells zeroes if it was given none."""
    text = str(answer["UUID"])
    return text if text.strip("0-") else ""


def _disk(drive: Drive, socket: str) -> Disk:
    return Disk(
        name=drive.name,
        size=drive.size,
        sector_size=drive.sector_size,
        volume="qemu",
        location=f"qmp:{quote(socket)}?node={quote(drive.node, safe='')}",
        tracker="qcow2",
        read_only=drive.read_only,
        facts={"qmp": socket, "node": drive.node},
    )


async def read_config(qmp: Qmp) -> Config:
    """What the other side must have the like of."""
    machine = await qmp.execute("qom-get", path="/machine", property="type")
    cpus = await qmp.execute("query-cpus-fast")
    cpu = cpus[0]["qom-path"]
    words = await _property(qmp, cpu, "feature-words") or ()
    return Config(
        qemu=qmp.version,
        machine=str(machine).removesuffix("-machine"),
        cpu=str(await _property(qmp, cpu, "type") or ""),
        features={_word(each): int(each["features"]) for each in words if each["features"]},
        devices=tuple(sorted([*await _pci(qmp), *await _types(qmp)])),
    )


def _word(word: Json) -> str:
    leaf = f"{word['cpuid-input-eax']:x}"
    index = word.get("cpuid-input-ecx")
    return f"{leaf}{'' if index is None else f'.{index:x}'}.{word['cpuid-register']}"


async def _pci(qmp: Qmp) -> list[str]:
    """Each PCI device with its place; none on a machine without PCI."""
    try:
        buses = await qmp.execute("query-pci")
    except QmpRefused:
        return []
    return [text for bus in buses for text in _on_bus(bus["devices"], "")]


def _on_bus(devices: Sequence[Json], path: str) -> Iterator[str]:
    for device in devices:
        place = f"{path}{device['slot']:02x}.{device['function']}"
        identity = device["id"]
        yield f"{place} {identity['vendor']:04x}:{identity['device']:04x}"
        yield from _on_bus(device.get("pci_bridge", {}).get("devices", ()), f"{place}/")


async def _types(qmp: Qmp) -> list[str]:
    """Types of the devices that were asked for."""
    found = []
    for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
        for child in await qmp.execute("qom-list", path=folder):
            if child["type"].startswith("child<"):
                found.append(child["type"][len("child<") : -1])
    return found
