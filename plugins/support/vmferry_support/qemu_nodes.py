"""Block nodes of a running QEMU or qemu-storage-daemon, and their dirty bitmaps."""

from __future__ import annotations

from typing import Any

import msgspec

from vmferry_support.qmp import Qmp, QmpError

__all__ = ["Bitmap", "Node", "NodeMissing", "find_node"]


class NodeMissing(QmpError):
    """There is no node of that name."""


class Bitmap(msgspec.Struct, frozen=True, kw_only=True):
    """A dirty bitmap; see docs/interop/bitmaps.rst of QEMU.

    Attributes:
        granularity: bytes of a bit.
        recording: writes are marked in it.
        count: bytes that are marked.
        busy: in use by an export or a job; it can be neither changed nor removed.
        persistent: it is stored in the image when QEMU ends.
        inconsistent: QEMU did not end in good order; it can only be removed.

    """

    name: str = ""
    granularity: int = 0
    recording: bool = False
    count: int
    busy: bool = False
    persistent: bool = False
    inconsistent: bool = False


class Node(msgspec.Struct, frozen=True):
    """A block node.

    Attributes:
        size: bytes of its disk.
        driver: as ``"raw"`` or ``"qcow2"``.
        bitmaps: by name.

    """

    name: str
    size: int
    driver: str
    bitmaps: dict[str, Bitmap]


async def find_node(qmp: Qmp, name: str) -> Node:
    """The node, as it is at the moment.

    Raises:
        NodeMissing: there is none of that name; says which there are.

    """
    nodes: list[dict[str, Any]] = await qmp.execute("query-named-block-nodes", flat=True)
    for node in nodes:
        if node.get("node-name") == name:
            bitmaps = msgspec.convert(node.get("dirty-bitmaps", []), list[Bitmap])
            return Node(
                name,
                int(node["image"]["virtual-size"]),
                str(node["drv"]),
                {bitmap.name: bitmap for bitmap in bitmaps if bitmap.name},
            )
    known = ", ".join(sorted(str(node.get("node-name")) for node in nodes)) or "none"
    raise NodeMissing(f"QEMU at {qmp.path} has no block node {name!r}; it has: {known}")
