"""What a user of the ``zeromq`` transport may choose."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vmferry.api.plugin import Options

__all__ = ["ZeromqOptions"]

_SECONDS = {"unit": "seconds"}
_BYTES = {"unit": "bytes"}


class ZeromqOptions(Options, frozen=True, kw_only=True):
    """Options of the ``zeromq`` transport. Both ends need CURVE or both must go without."""

    curve_key: Annotated[
        str,
        Meta(description="file of this host's secret key (NAME.key_secret); turns CURVE on"),
    ] = ""
    curve_server_key: Annotated[
        str, Meta(description="file of the listener's public key (NAME.key), to connect")
    ] = ""
    curve_allow: Annotated[
        str,
        Meta(description="folder of the public keys (NAME.key) that may connect, to listen"),
    ] = ""
    insecure: Annotated[
        bool, Meta(description="listen without CURVE on addresses that other hosts can reach")
    ] = False
    window: Annotated[
        int,
        Meta(
            ge=64 << 10,
            le=1 << 30,
            description="bytes after which a lane takes no further frame from its peer until some"
            " were received",
            extra=_BYTES,
        ),
    ] = 4 << 20
    io_threads: Annotated[
        int, Meta(ge=1, le=64, description="threads of libzmq that move and encrypt data")
    ] = 2
    connect_timeout: Annotated[
        float,
        Meta(gt=0, description="most time to connect, authenticate and greet", extra=_SECONDS),
    ] = 10.0
    close_timeout: Annotated[
        float,
        Meta(gt=0, description="most time to deliver what was sent at a close", extra=_SECONDS),
    ] = 5.0
    heartbeat: Annotated[
        float,
        Meta(ge=0, description="time between probes of the peer; 0: none", extra=_SECONDS),
    ] = 5.0
    heartbeat_timeout: Annotated[
        float,
        Meta(gt=0, description="silence after a probe that loses the connection", extra=_SECONDS),
    ] = 30.0
