"""What a user of the ``ssh`` transport may choose."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from vmferry.api.plugin import Options

__all__ = ["Bulk", "SshOptions"]

_SECONDS = {"unit": "seconds"}
Bulk = Literal["auto", "ssh", "direct"]


class SshOptions(Options, frozen=True, kw_only=True):
    """Options of the ``ssh`` transport; ``direct_ports`` is for the agent, the rest for callers."""

    remote_command: Annotated[
        str, Meta(min_length=1, description="how migrate is called at the other end")
    ] = "migrate"
    remote_options: Annotated[
        str, Meta(description="options for the agent there, as for 'migrate serve'")
    ] = ""
    ssh_command: Annotated[
        str, Meta(min_length=1, description="ssh and options for it, e.g. 'ssh -i key'")
    ] = "ssh"
    bulk: Annotated[
        Bulk,
        Meta(
            description="how bulk data goes: 'direct': over TLS on a connection of its own;"
            " 'ssh': through ssh; 'auto': direct where that can be had"
        ),
    ] = "auto"
    direct_ports: Annotated[
        str,
        Meta(
            pattern=r"^(\d{1,5}(-\d{1,5})?)?$",
            description="ports for direct connections, as '49152-49215'; empty: any free one",
        ),
    ] = ""
    connect_timeout: Annotated[
        float, Meta(gt=0, description="most time until sshd answers", extra=_SECONDS)
    ] = 15.0
    login_timeout: Annotated[
        float,
        Meta(gt=0, description="most time for a login, typing included", extra=_SECONDS),
    ] = 120.0
    probe_timeout: Annotated[
        float,
        Meta(gt=0, description="most time to try one direct address", extra=_SECONDS),
    ] = 3.0
    close_timeout: Annotated[
        float,
        Meta(gt=0, description="most time to deliver what was sent at a close", extra=_SECONDS),
    ] = 5.0
