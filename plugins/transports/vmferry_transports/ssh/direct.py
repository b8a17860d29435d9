"""A direct connection beside ssh: found by trying, trusted by what went through ssh."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from vmferry.api.transport import Address
from vmferry.errors import LinkError
from vmferry_support.commands import CommandFailed, CommandMissing, run
from vmferry_transports.ssh.certificates import OneTime
from vmferry_transports.ssh.exchange import Ask
from vmferry_transports.ssh.opening import CallerOpening
from vmferry_transports.ssh.options import SshOptions
from vmferry_transports.ssh.program import settings_command
from vmferry_transports.tcp import sockets
from vmferry_transports.tcp.opening import TlsOpening
from vmferry_transports.tcp.options import TcpOptions

__all__ = ["Direct", "find_direct"]

_NAME = "agent"
"""For the handshake, which wants one; it is not checked."""


class Direct:
    """A way to the agent that was tried and works.

    Attributes:
        address: where it goes.
        first: a connection over it, after the handshake; whoever takes it closes it.

    """

    def __init__(
        self, address: Address, context: ssl.SSLContext, options: TcpOptions, first: TlsOpening
    ) -> None:
        self.address, self.first = address, first
        self._context, self._options = context, options

    async def open(self) -> TlsOpening:
        """Another connection. Raises ``LinkError``."""
        return await _open(self.address, self._context, self._options)


async def _open(address: Address, context: ssl.SSLContext, options: TcpOptions) -> TlsOpening:
    sock = await sockets.connect(address, options)
    try:
        opening = TlsOpening(sock, context, name=_NAME)
        await opening.handshake()
    except BaseException:
        sock.close()
        raise
    return opening


async def find_direct(
    opening: CallerOpening, session: bytes, address: Address, options: SshOptions
) -> Direct:
    """Agree with the agent on a port and certificates, then try to reach it.

    Raises:
        LinkError: it cannot be had; the message says what was tried.

    """
    mine = OneTime()
    answer = await opening.ask(Ask(session=session.hex(), certificate=mine.pem))
    if not answer.port:
        raise LinkError(answer.refused or "the agent does not listen for any")
    try:
        context = mine.context(answer.certificate, server=False)
    except ssl.SSLError as error:
        raise LinkError(f"the agent's certificate cannot be used: {error.reason}") from None
    tcp = TcpOptions(connect_timeout=options.probe_timeout, close_timeout=options.close_timeout)
    failures = []
    for host in await _hosts(opening, address, options):
        there = Address(scheme="tcp", host=host, port=answer.port)
        try:
            async with asyncio.timeout(2 * options.probe_timeout):
                first = await _open(there, context, tcp)
        except TimeoutError:
            failures.append(f"{there} does not answer")
        except (LinkError, OSError) as error:
            failures.append(str(error))
        else:
            return Direct(there, context, tcp, first)
    raise LinkError("; ".join(failures) or "no address of that host is known")


async def _hosts(opening: CallerOpening, address: Address, options: SshOptions) -> list[str]:
    """Where the agent may be: what sshd says it was called by, and what ssh calls it."""
    found = [opening.banner.server]
    with contextlib.suppress(CommandFailed, CommandMissing):
        for line in (await run(*settings_command(address, options))).splitlines():
            key, _, value = line.partition(" ")
            if key == "hostname":
                found.append(value)
    return [host for host in dict.fromkeys(found) if host]
