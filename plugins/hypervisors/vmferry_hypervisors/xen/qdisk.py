"""Disks that a QEMU in dom0 serves (``backendtype=qdisk``): their file, and who marks writes.

The file is read itself, not through that QEMU: it ends with the domain, and PULL goes on after it.
So only raw files and devices will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk

__all__ = ["Qdisk", "qdisk_findings"]

SOCKETS = "/var/run/xen"
_DRIVERS = {"aio": "raw", "vhd": "vpc"}
"""libxl's names of formats that QEMU calls otherwise (``xen_block_drive_create``)."""


class Qdisk(NamedTuple):
    """Such a disk.

    Attributes:
        location: the file or device.
        facts: ``format`` as QEMU calls it, and for the tracker ``qcow2``: ``qmp`` and ``node``.

    """

    location: str
    facts: dict[str, str]

    @classmethod
    def of(cls, path: str, fields: Mapping[str, str]) -> Qdisk:
        """Of a backend by its place in xenstore, ``.../qdisk/DOMID/NUMBER``, and its values.

        libxl gives each such QEMU two monitors (``libxl__build_device_model_args_new``). The one
        for statistics is taken: xl would wait for the other. QEMU names the node after the disk
        and its format (``xen_block_blockdev_add`` in hw/block/xen-block.c).
        """
        form, colon, rest = fields.get("params", "").partition(":")
        driver = _DRIVERS.get(form, form) if colon else "raw"
        facts = {
            "format": driver,
            "qmp": f"{SOCKETS}/qmp-libxenstat-{path.split('/')[-2]}",
            "node": f"{fields.get('dev', '')}-{driver}",
        }
        return cls(rest if colon else form, facts)


def qdisk_findings(disk: Disk) -> list[Finding]:
    """Reasons why such a disk cannot be moved."""
    if disk.facts["format"] != "raw":
        text = f"disk {disk.name} ({disk.location}) is served by QEMU in {disk.facts['format']}"
        remedy = "convert it with qemu-img convert -O raw, and give it format=raw"
        return [Finding.error("disk-backend", f"{text}; only raw will do", remedy)]
    if not Path(disk.facts["qmp"]).is_socket():
        text = f"disk {disk.name}: its QEMU has no monitor at {disk.facts['qmp']}"
        return [Finding.error("disk-backend", text, "give it backendtype=phy")]
    return []
