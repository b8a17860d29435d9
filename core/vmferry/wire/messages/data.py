"""What carries disks and memory, in PUSH, STOP and PULL."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vmferry.wire.messages.fields import Channels, Count, Digest, DiskIndex, Length, Message

__all__ = [
    "Barrier",
    "Compare",
    "Digests",
    "Extent",
    "Fetch",
    "Local",
    "PendingMap",
    "Pushed",
    "Reached",
    "Stream",
    "Suspended",
    "Taken",
]


class Extent(Message, frozen=True, kw_only=True):
    """A piece of a disk.

    Attributes:
        disk: index in the offer.
        offset, length: bytes.
        digest: BLAKE3 of the uncompressed bytes; empty for a zero extent.
        codec: 0 none, 1 lz4, 2 zstd; how the payload is compressed.
        zero: the piece is all zeroes and the payload empty.

    """

    disk: DiskIndex
    offset: Count
    length: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
    digest: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    codec: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    zero: bool = False


class Barrier(Message, frozen=True, kw_only=True):
    """On every bulk lane: tell me when all extents before this one are in their volume.

    Attributes:
        serial: comes back in ``Reached``.
        durable: and when they are on stable storage, too.

    """

    serial: Count
    durable: bool = False


class Reached(Message, frozen=True, kw_only=True):
    """All extents before the barrier, on all lanes, are in their volumes."""

    serial: Count


class Stream(Message, frozen=True, kw_only=True):
    """A piece of the hypervisor's own byte stream; one of no bytes is its end.

    Attributes:
        length: bytes, uncompressed.
        digest: BLAKE3 of the uncompressed bytes.
        codec: 0 none, 1 lz4, 2 zstd; how the payload is compressed.

    """

    length: Annotated[int, msgspec.Meta(ge=0, le=1 << 19)]
    digest: Digest
    codec: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0


class Taken(Message, frozen=True, kw_only=True):
    """So much of the stream has been handed on where it was to go; see ``vmferry.wire.window``.

    Attributes:
        total: bytes since the beginning, without heads.
        channel: which stream: 0 that of the stream lane, then those of the channels.
        idle: percent of the time since the last such message in which it waited for more.

    """

    total: Count
    channel: Channels = 0
    idle: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0


class Suspended(Message, frozen=True, kw_only=True):
    """The guest has just been suspended: its downtime begins."""


class PendingMap(Message, frozen=True, kw_only=True):
    """A piece of the pending map of one disk, in the dirty map's compact form.

    Attributes:
        disk: index in the offer.
        block_size: bytes per bit.
        total: bytes of the whole encoding.
        offset: where this piece starts in it.
        digest: BLAKE3 of this piece.

    """

    disk: DiskIndex
    block_size: Annotated[int, msgspec.Meta(ge=512, le=1 << 24)]
    total: Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]
    offset: Count
    digest: Digest


class Compare(Message, frozen=True, kw_only=True):
    """In PUSH: what do you hold there? Answered with ``Digests``, in any order.

    Attributes:
        disk: index in the offer.
        offset, length: bytes of the stretch; nothing of it is on its way.
        piece: bytes that are digested together; the last piece may be shorter.

    """

    disk: DiskIndex
    offset: Count
    length: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
    piece: Annotated[int, msgspec.Meta(ge=512, le=1 << 24)]


class Digests(Message, frozen=True, kw_only=True):
    """Answer to ``Compare``: as payload 32 bytes for each piece.

    They are the BLAKE3 of a piece as the volume has it, or zeroes if the piece is all zeroes.

    Attributes:
        disk, offset: those of ``Compare``.
        digest: BLAKE3 of the payload.

    """

    disk: DiskIndex
    offset: Count
    digest: Digest


class Fetch(Message, frozen=True, kw_only=True):
    """The guest waits for these blocks: answer with ``Extent`` on the control lane, at once."""

    disk: DiskIndex
    offset: Count
    length: Length


class Pushed(Message, frozen=True, kw_only=True):
    """All that was pending has been pushed."""


class Local(Message, frozen=True, kw_only=True):
    """All disks are local, durable and pivoted: the source is needed no more.

    Attributes:
        on_demand: blocks fetched because the guest asked.
        guest_downtime: seconds as the guest saw them, -1 if it cannot tell.

    """

    on_demand: Count = 0
    guest_downtime: float = -1.0
