"""The disks a server shows, by name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmferry.api.volume import BlockIO
from vmferry.errors import InputError, VolumeGeometry
from vmferry.export.nbd.protocol import MAX_NAME, MAX_PAYLOAD, TransmissionFlag

if TYPE_CHECKING:
    from vmferry.export.nbd.connection import Connection

__all__ = ["Export", "Session"]

_PREFERRED = 4096
_COMMON = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.CAN_MULTI_CONN
)
_WRITABLE = TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES


class Export:
    """One disk under one name.

    ``CAN_MULTI_CONN`` is true of every export: all connections share one ``BlockIO``, nothing is
    cached per connection, a write is answered only after ``BlockIO.write`` returned, from when on
    every read sees it, and ``BlockIO.flush`` makes durable whatever was completed before it,
    whoever wrote it.

    Attributes:
        name: what clients ask for.
        io: the disk.
        read_only: writes are refused with ``EPERM``.
        maps: the disk can tell holes from data.
        connections: those that use the export, also while they end.

    """

    def __init__(self, name: str, io: BlockIO, *, read_only: bool = False) -> None:
        if len(name.encode()) > MAX_NAME:
            raise InputError(f"an export name is at most {MAX_NAME} bytes long")
        self.name, self.io, self.read_only = name, io, read_only
        self.maps = getattr(io, "maps", type(io).extents is not BlockIO.extents)
        self.connections: set[Connection] = set()
        self.geometry = io.geometry
        sector = self.geometry.sector_size
        if sector & (sector - 1) or sector > MAX_PAYLOAD or self.geometry.size % sector:
            raise VolumeGeometry(f"disk {name!r} of {self.geometry} cannot be served over NBD")

    @property
    def block_sizes(self) -> tuple[int, int, int]:
        """Minimum, preferred and maximum size of a request in bytes."""
        sector = self.geometry.sector_size
        return sector, max(sector, _PREFERRED), MAX_PAYLOAD

    def flags(self, *, structured: bool) -> int:
        """Transmission flags for a session."""
        flags = _COMMON | (TransmissionFlag.READ_ONLY if self.read_only else _WRITABLE)
        return int(flags | TransmissionFlag.SEND_DF if structured else flags)

    async def settled(self) -> None:
        """Wait for the writes of clients that went away without saying so.

        A client that lost its connection sends its writes again on the next one. A first copy that
        is still on its way to the disk must not land after later writes.
        """
        while ending := [c.finished for c in self.connections if c.lost]:
            await asyncio.wait(ending)


class Session:
    """What a handshake agreed on.

    Attributes:
        export: the chosen export.
        structured: replies are structured.
        allocation: ``base:allocation`` was chosen, as context ``ALLOCATION_ID``.

    """

    __slots__ = ("allocation", "export", "structured")

    def __init__(self, export: Export, *, structured: bool, allocation: bool) -> None:
        self.export, self.structured, self.allocation = export, structured, allocation
