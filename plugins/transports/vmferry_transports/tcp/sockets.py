"""Making TCP sockets: names, time-outs, options, and errors that say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import Any

from vmferry.api.transport import Address
from vmferry.errors import InputError, LinkError, LinkTimeout
from vmferry_transports.tcp.options import TcpOptions

__all__ = ["connect", "listen", "name_of", "tune"]

_BACKLOG = 256
_Resolved = tuple[int, int, int, str, Any]


def name_of(sockaddr: tuple[Any, ...] | str) -> str:
    """``tcp://host:port`` of a socket address."""
    if not isinstance(sockaddr, tuple) or len(sockaddr) < 2:
        return "tcp://"
    return str(Address(scheme="tcp", host=str(sockaddr[0]), port=int(sockaddr[1])))


def tune(sock: socket.socket, options: TcpOptions) -> None:
    """Set what ``options`` say about a connected socket; see tcp(7).

    A frame is one ``sendmsg``, so that waiting to fill a segment (Nagle) could only delay it.
    """
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, options.keepalive_idle)
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, options.keepalive_interval)
    sock.setsockopt(tcp, socket.TCP_KEEPCNT, options.keepalive_probes)
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, round(options.user_timeout * 1000))


def _buffers(sock: socket.socket, options: TcpOptions) -> None:
    """Set buffer sizes, which must be done before the connection is made."""
    if options.send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)
    if options.receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer)


async def _resolve(address: Address, *, passive: bool) -> list[_Resolved]:
    loop = asyncio.get_running_loop()
    flags = socket.AI_PASSIVE if passive else 0
    try:
        found = await loop.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags
        )
    except (OSError, UnicodeError) as error:
        raise LinkError(f"{address}: no address found for {address.host!r}: {error}") from None
    return [(family, kind, proto, name, where) for family, kind, proto, name, where in found]


async def connect(address: Address, options: TcpOptions) -> socket.socket:
    """Return a connected, non-blocking socket.

    Raises:
        LinkError: the name is not known, or nobody answers at any of its addresses.

    """
    errors = []
    try:
        async with asyncio.timeout(options.connect_timeout):
            for family, kind, proto, _, where in await _resolve(address, passive=False):
                try:
                    return await _connect_one(socket.socket(family, kind, proto), where, options)
                except OSError as error:
                    errors.append(error)
    except TimeoutError:
        raise LinkTimeout(
            f"{address} did not answer within {options.connect_timeout:g} s (connect_timeout);"
            " is the host up, and does a firewall let the port through?"
        ) from None
    raise _unreachable(address, errors[0])


async def _connect_one(
    sock: socket.socket, where: tuple[Any, ...], options: TcpOptions
) -> socket.socket:
    try:
        sock.setblocking(False)
        _buffers(sock, options)
        await asyncio.get_running_loop().sock_connect(sock, where)
        tune(sock, options)
    except BaseException:
        sock.close()
        raise
    return sock


def _unreachable(address: Address, error: OSError) -> LinkError:
    if isinstance(error, ConnectionRefusedError):
        return LinkError(
            f"nobody listens at {address} (connection refused); start the receiving side there,"
            " or correct the port"
        )
    return LinkError(f"{address} cannot be reached: {error.strerror or error}")


async def listen(address: Address, options: TcpOptions, *, secure: bool) -> socket.socket:
    """Return a listening, non-blocking socket.

    Raises:
        InputError: the address is not one of this host, is taken, or is open to other hosts
            without TLS.

    """
    try:
        family, kind, proto, _, where = _preferred(await _resolve(address, passive=True))
    except LinkError as error:
        raise InputError(str(error)) from None
    if not (secure or options.insecure or ipaddress.ip_address(where[0]).is_loopback):
        raise InputError(
            f"{address} can be reached by other hosts, and without TLS anybody there could read"
            " and change the guest; set tls_cert, tls_key and tls_ca, or listen on 127.0.0.1"
            " behind a tunnel, or accept the risk with insecure=true"
        )
    sock = socket.socket(family, kind, proto)
    try:
        _bind(sock, where, options)
    except OSError as error:
        sock.close()
        raise InputError(f"cannot listen at {address}: {error.strerror or error}") from None
    return sock


def _preferred(found: list[_Resolved]) -> _Resolved:
    """Choose IPv6 for the wildcard address, where it takes IPv4 as well."""
    return next((each for each in found if each[4][0] == "::"), found[0])


def _bind(sock: socket.socket, where: tuple[Any, ...], options: TcpOptions) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6 and where[0] == "::":
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    _buffers(sock, options)
    sock.bind(where)
    sock.listen(_BACKLOG)
