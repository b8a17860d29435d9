"""What opens a connection, and the offer of a guest."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vmferry.api.findings import Finding
from vmferry.api.guest import Guest
from vmferry.wire.messages.fields import (
    MAX_EPOCH,
    MAX_RECONNECT,
    Channels,
    Codecs,
    Count,
    Epoch,
    JobId,
    Message,
    Short,
)

__all__ = ["Accepted", "AcceptedDisk", "Hello", "Offer", "Refused", "Welcome"]


class Hello(Message, frozen=True, kw_only=True):
    """First on a connection. Its format never changes.

    Attributes:
        oldest, newest: protocol versions the source speaks.
        agent: software and version, for the log.
        job: identifier of the migration.
        token: empty for a new job; else the secret from ``Accepted``, to go on with a known job.
        codecs: compression the source can send, best first.
        channels: lanes after the stream lane that carry further streams of the hypervisor.

    """

    oldest: Count
    newest: Count
    agent: Short
    job: JobId
    token: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    codecs: Codecs = ()
    channels: Channels = 0


class Welcome(Message, frozen=True, kw_only=True):
    """Answer to ``Hello``: the version both will speak and the codecs the destination reads.

    Attributes:
        channels: those of ``Hello``; fewer if the destination does not know of them.
        salt: random for each connection. On all lanes but the control lane the checksum of a head
            is XORed with it from here on.

    """

    version: Count
    agent: Short
    codecs: Codecs = ()
    channels: Channels = 0
    salt: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0


class Offer(Message, frozen=True, kw_only=True):
    """The guest to move.

    Attributes:
        guest: as its hypervisor describes it; the order of its disks numbers them from here on.
        block_sizes: per disk, bytes per bit of its dirty map.
        check_only: answer, but change nothing.
        epoch: the highest under which the source knows the guest; 0 if it never moved.
        reconnect: seconds for which the source tries to come back when the connection is lost in
            PUSH; what has come is kept for so long. With 0 it does not come back.

    """

    guest: Guest
    block_sizes: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=512, le=1 << 24)], ...], msgspec.Meta(max_length=256)
    ]
    check_only: bool = False
    epoch: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)] = 0
    reconnect: Annotated[float, msgspec.Meta(ge=0, le=MAX_RECONNECT)] = 0.0


class AcceptedDisk(msgspec.Struct, frozen=True, kw_only=True):
    """How the destination took one disk: where, and whether it reads as zeroes throughout."""

    location: Annotated[str, msgspec.Meta(max_length=4096)]
    blank: bool


class Accepted(Message, frozen=True, kw_only=True):
    """The offer is taken; memory, space and names are reserved.

    Attributes:
        token: secret that lets the source go on with this job on another connection.
        epoch: number of this agreement on who owns the guest; higher than any that either host
            knows of it.
        disks: in the offer's order; empty if only checked.
        findings: warnings and facts.

    """

    token: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    epoch: Epoch = 1
    disks: Annotated[tuple[AcceptedDisk, ...], msgspec.Meta(max_length=256)] = ()
    findings: Annotated[tuple[Finding, ...], msgspec.Meta(max_length=1024)] = ()


class Refused(Message, frozen=True, kw_only=True):
    """The offer is not taken, and nothing was changed."""

    findings: Annotated[tuple[Finding, ...], msgspec.Meta(min_length=1, max_length=1024)]
