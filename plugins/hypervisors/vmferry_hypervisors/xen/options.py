"""Options of the ``xen`` hypervisor plugin."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from vmferry.api.plugin import Options
from vmferry.units import MIB

__all__ = ["XenOptions"]


class XenOptions(Options, frozen=True, kw_only=True):
    """Options of the ``xen`` hypervisor plugin; most matter at the destination only."""

    min_dom0_memory: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="destination: dom0 may be ballooned down to this to make room for a guest; "
            "0 leaves dom0 alone",
            extra={"unit": "bytes"},
        ),
    ] = 0
    min_guest_memory: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="destination: other guests may be ballooned down to this to make room, the "
            "largest first; 0 leaves them alone",
            extra={"unit": "bytes"},
        ),
    ] = 0
    spare_memory: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="destination: memory of Xen's own that is to stay free beside the guest's",
            extra={"unit": "bytes"},
        ),
    ] = 8 * MIB
    name: Annotated[
        str,
        msgspec.Meta(
            max_length=200,
            description="destination: name of the guest here; empty keeps the one it has",
        ),
    ] = ""
    bridges: Annotated[
        str,
        msgspec.Meta(
            description="destination: bridges by the source's name, as OLD=NEW,OLD=NEW; "
            "one that is not named keeps its name",
        ),
    ] = ""
    hotplug: Annotated[
        Literal["own", "xen"],
        msgspec.Meta(
            description="destination: script that attaches the disks: our own, which has next to "
            "nothing to do and shortens the downtime, or Xen's block",
        ),
    ] = "own"
    max_segments: Annotated[
        int,
        msgspec.Meta(
            ge=3,
            le=100_000,
            description="destination: most segments of a disk's device-mapper table during PULL; "
            "near pending ranges are merged to keep to it",
        ),
    ] = 4000
    timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            description="time without any progress after which xl is given up",
            extra={"unit": "seconds"},
        ),
    ] = 60.0
    xenstore: Annotated[
        str,
        msgspec.Meta(description="socket of xenstored; empty finds it"),
    ] = ""
