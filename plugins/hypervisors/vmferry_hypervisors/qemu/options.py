"""Options of the ``qemu`` hypervisor."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vmferry.api.plugin import Options

__all__ = ["QemuOptions"]

_Seconds = {"unit": "seconds"}


class QemuOptions(Options, frozen=True, kw_only=True):
    """Where QEMU's monitors are, how memory is sent, and what runs at the destination."""

    sockets: Annotated[
        str,
        Meta(
            min_length=1,
            description="QMP sockets of this host's guests: a folder (*.qmp in it) or a pattern "
            "with one * for the guest's name, where guests that arrive get theirs too",
        ),
    ] = "/run/vmferry/qemu/*.qmp"
    command: Annotated[
        str,
        Meta(
            description="command line that starts an arriving guest's QEMU; {name}, {uuid}, "
            "{memory} (MiB), {vcpus}, {machine} and for each disk {disk:NAME} (the node its device "
            "is to use) are replaced. Monitor, nodes and -incoming are added"
        ),
    ] = ""
    incoming: Annotated[
        str,
        Meta(
            description="QMP socket of a QEMU that waits for the guest, started with "
            "-S -incoming defer; takes the place of command"
        ),
    ] = ""
    downtime_limit: Annotated[
        float,
        Meta(
            ge=0.001,
            le=2000,
            description="memory that takes longer than this to send is not left for the stop",
            extra=_Seconds,
        ),
    ] = 0.3
    max_bandwidth: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 53,
            description="limit of QEMU's memory stream; 0: none but that of --bandwidth",
            extra={"unit": "bytes/s"},
        ),
    ] = 0
    max_rounds: Annotated[
        int,
        Meta(ge=2, le=10000, description="rounds of memory after which the guest is stopped"),
    ] = 50
    auto_converge: Annotated[
        bool, Meta(description="slow the guest down when its memory does not converge")
    ] = False
    reconnect: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 30,
            description="how long a request of the guest waits for an agent that is gone before "
            "it fails",
            extra=_Seconds,
        ),
    ] = 86400
    direct: Annotated[
        bool, Meta(description="let the guest's disks at the destination bypass the page cache")
    ] = False
    timeout: Annotated[
        float,
        Meta(gt=0, le=3600, description="how long QEMU may take to obey", extra=_Seconds),
    ] = 30.0
