"""What a user of the ``rdma`` transport may choose."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from vmferry.api.plugin import Options

__all__ = ["RdmaOptions"]

_SECONDS = {"unit": "seconds"}
_BYTES = {"unit": "bytes"}


class RdmaOptions(Options, frozen=True, kw_only=True):
    """Options of the ``rdma`` transport. Both ends need the same provider."""

    provider: Annotated[
        Literal["auto", "shared_memory", "verbs"],
        Meta(
            description="who moves the data; auto: shared_memory for this host's loopback"
            " addresses, verbs for others"
        ),
    ] = "auto"
    device: Annotated[str, Meta(description="RDMA device of verbs; empty: the first one")] = ""
    gid_index: Annotated[
        int, Meta(ge=0, le=255, description="entry of the device's table of addresses (RoCE)")
    ] = 1
    insecure: Annotated[
        bool, Meta(description="listen on addresses that other hosts can reach, unencrypted")
    ] = False
    slot: Annotated[
        int,
        Meta(ge=4096, le=16 << 20, description="bytes of a slot for bulk data", extra=_BYTES),
    ] = 256 << 10
    slots: Annotated[
        int, Meta(ge=4, le=1024, description="slots of each lane; all of them are registered")
    ] = 16
    connect_timeout: Annotated[
        float, Meta(gt=0, description="most time to connect and exchange keys", extra=_SECONDS)
    ] = 10.0
    close_timeout: Annotated[
        float,
        Meta(gt=0, description="most time to deliver what was sent at a close", extra=_SECONDS),
    ] = 5.0
