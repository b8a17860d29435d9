"""What a user of the ``tcp`` transport may choose."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vmferry.api.plugin import Options

__all__ = ["TcpOptions"]

_SECONDS = {"unit": "seconds"}
_BYTES = {"unit": "bytes"}


class TcpOptions(Options, frozen=True, kw_only=True):
    """Options of the ``tcp`` transport. Both ends need TLS or both must go without."""

    tls_cert: Annotated[
        str, Meta(description="file of this host's certificate (PEM, with its chain)")
    ] = ""
    tls_key: Annotated[str, Meta(description="file of the certificate's private key (PEM)")] = ""
    tls_ca: Annotated[
        str, Meta(description="file of the authorities that sign peers' certificates (PEM)")
    ] = ""
    tls_name: Annotated[
        str,
        Meta(
            description="name the listener's certificate must carry; empty: the host of the"
            " address; '*': any certificate that tls_ca signed"
        ),
    ] = ""
    allow: Annotated[
        tuple[str, ...],
        Meta(
            description="names, one of which a certificate must carry to be let in by the"
            " listener; empty: any certificate that tls_ca signed"
        ),
    ] = ()
    insecure: Annotated[
        bool, Meta(description="listen without TLS on addresses that other hosts can reach")
    ] = False
    connect_timeout: Annotated[
        float, Meta(gt=0, description="most time for a TCP connection", extra=_SECONDS)
    ] = 10.0
    handshake_timeout: Annotated[
        float,
        Meta(gt=0, description="most time for TLS, greeting and all lanes", extra=_SECONDS),
    ] = 10.0
    close_timeout: Annotated[
        float,
        Meta(gt=0, description="most time to deliver what was sent at a close", extra=_SECONDS),
    ] = 5.0
    keepalive_idle: Annotated[
        int, Meta(ge=1, description="silence before the peer is probed", extra=_SECONDS)
    ] = 15
    keepalive_interval: Annotated[
        int, Meta(ge=1, description="time between probes", extra=_SECONDS)
    ] = 5
    keepalive_probes: Annotated[
        int, Meta(ge=1, description="unanswered probes after which the connection is lost")
    ] = 6
    user_timeout: Annotated[
        float,
        Meta(
            ge=0,
            description="most time data may stay unacknowledged; 0: the kernel's. Also ends a"
            " connection whose receiver pauses for that long (see tcp(7), TCP_USER_TIMEOUT)",
            extra=_SECONDS,
        ),
    ] = 0.0
    send_buffer: Annotated[
        int, Meta(ge=0, description="socket send buffer; 0: the kernel adapts it", extra=_BYTES)
    ] = 0
    receive_buffer: Annotated[
        int, Meta(ge=0, description="socket receive buffer; 0: the kernel adapts it", extra=_BYTES)
    ] = 0
