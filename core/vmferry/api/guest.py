"""Descriptions of a guest and its disks. They travel to the destination, so they are plain data."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["ArrivingDisk", "Disk", "Guest"]

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Facts = Annotated[dict[Name, Text], msgspec.Meta(max_length=256)]


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """One local disk of a guest.

    Attributes:
        name: unique within the guest, e.g. ``disk0`` or ``xvda``; safe as a file name.
        size: bytes; a multiple of ``sector_size``.
        sector_size: logical sector in bytes, 512 or 4096.
        volume: name of the volume plugin that reads ``location``.
        location: where that plugin finds the disk on the source, e.g. a path.
        tracker: tracker plugin that suits the way the guest is attached to the disk; a default
            that the operator may override.
        read_only: the guest cannot write it: it is copied once and not tracked.
        facts: what the tracker or the other side's hypervisor must know about the attachment, e.g.
            ``{"backend": "vbd/3/51712"}``. Keys and meanings are the plugins' own.

    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    size: Annotated[int, msgspec.Meta(gt=0, le=1 << 53)]
    sector_size: Annotated[int, msgspec.Meta(ge=512, le=65536)] = 512
    volume: Name = "raw"
    location: Text = ""
    tracker: Name = "export"
    read_only: bool = False
    facts: Facts = {}


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A guest as its source hypervisor describes it.

    Attributes:
        name: as the hypervisor knows it.
        uuid: stable identity of the guest; ``""`` if the hypervisor has none.
        hypervisor: name of the hypervisor plugin that described it.
        memory: bytes of guest memory.
        vcpus: number of virtual processors.
        disks: all local disks. Leaving one out is an error of the plugin.
        facts: versions and features for the destination's check.
        config: what the destination's plugin needs to build the guest; opaque to the engine, at
            most 1 MiB, untrusted at the destination.

    """

    name: Name
    uuid: Annotated[str, msgspec.Meta(max_length=64)] = ""
    hypervisor: Name
    memory: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    vcpus: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1
    disks: Annotated[tuple[Disk, ...], msgspec.Meta(max_length=256)] = ()
    facts: Facts = {}
    config: Annotated[bytes, msgspec.Meta(max_length=1 << 20)] = b""


class ArrivingDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk as the destination's hypervisor shall attach it.

    Attributes:
        disk: the source's description.
        volume: name of the volume plugin of the local copy.
        location: where that plugin keeps the local copy: the plain disk after the pivot.
        export: URL at which the pull disk is served until then, ``nbd+unix:///NAME?socket=PATH``.
            It can be opened from the moment ``arrive`` is called. Until the guest is activated
            every request on it waits or is refused, so a hypervisor may connect but not read.

    """

    disk: Disk
    volume: str
    location: str
    export: str
