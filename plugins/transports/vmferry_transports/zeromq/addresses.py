"""Addresses as ZeroMQ takes them: numeric, so that its threads never look up a name."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from vmferry.api.transport import Address
from vmferry.errors import InputError, LinkError

__all__ = ["check", "endpoint", "is_loopback"]


def check(address: Address) -> None:
    """Raise ``InputError`` when ``address`` is none of this transport."""
    if address.scheme != "zeromq" or address.path not in ("", "/") or address.query:
        raise InputError(f"{address} is no address of this transport; write zeromq://host:7420")


async def endpoint(address: Address, *, passive: bool) -> str:
    """Return ``tcp://...`` with a number for the host, and ``*`` for port 0.

    Raises:
        LinkError: the name is not known.

    """
    loop = asyncio.get_running_loop()
    flags = socket.AI_PASSIVE if passive else 0
    try:
        found = await loop.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags
        )
    except (OSError, UnicodeError) as error:
        raise LinkError(f"{address}: no address found for {address.host!r}: {error}") from None
    hosts = [str(each[4][0]) for each in found]
    host = "::" if passive and "::" in hosts else hosts[0]
    return f"tcp://{f'[{host}]' if ':' in host else host}:{address.port or '*'}"


def is_loopback(endpoint: str) -> bool:
    """True when only this host can reach ``endpoint``."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
