"""Options of the ``qcow2`` tracker."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vmferry.api.plugin import Options

__all__ = ["Qcow2TrackerOptions"]


class Qcow2TrackerOptions(Options, frozen=True, kw_only=True):
    """What the first harvest begins from, and how long QEMU is waited for."""

    base: Annotated[
        str,
        msgspec.Meta(
            max_length=255,
            description="an existing bitmap, left alone, whose blocks the first harvest holds too; "
            "everything if it is missing, disabled or inconsistent",
        ),
    ] = ""
    connect_timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for QEMU's monitor to greet",
            extra={"unit": "seconds"},
        ),
    ] = 10.0
    drain_timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for the writes of the suspended guest to end",
            extra={"unit": "seconds"},
        ),
    ] = 30.0
