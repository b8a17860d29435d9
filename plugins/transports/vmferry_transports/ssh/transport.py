"""Connecting through ssh, and listening for those who did."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import ClassVar

from vmferry.api.plugin import Grade
from vmferry.api.transport import (
    Address,
    Connection,
    Limits,
    Listener,
    PeerInfo,
    Transport,
    TransportCapabilities,
)
from vmferry.errors import InputError, LinkError
from vmferry_transports.ssh.complaints import explain
from vmferry_transports.ssh.connection import SshConnection
from vmferry_transports.ssh.direct import Direct, find_direct
from vmferry_transports.ssh.listener import listen
from vmferry_transports.ssh.opening import CallerOpening
from vmferry_transports.ssh.options import SshOptions
from vmferry_transports.ssh.program import SshProcess, command
from vmferry_transports.tcp.greeting import Greeting
from vmferry_transports.tcp.opening import Opening

__all__ = ["SshTransport"]

_log = logging.getLogger("vmferry_transports.ssh")
_LAST_WORDS = 2.0
_LOGINS = 6
"""Most logins under way: from ten on sshd turns some away, see sshd_config(5), MaxStartups."""


class SshTransport(Transport[SshOptions]):
    """``ssh://[user@]host[:port][/pool]``: the agent there is started through ssh.

    Every lane that goes through ssh is a process of its own, with a login of its own: lanes do not
    wait for each other, and encryption uses several cores. Lane 0 always goes through ssh; the
    others go over TLS where a direct connection can be had, see ``bulk``.

    The program at the other end, ``migrate stdio``, starts the agent if none runs and then only
    passes bytes to its unix socket, which is where this transport listens: ``ssh:///path``. So
    the agent outlives the login, and coming back is another login.
    """

    api_version = 1
    name = "ssh"
    summary = "through your own ssh, which starts the agent there; bulk data over TLS if possible"
    options_type = SshOptions
    capabilities: ClassVar[TransportCapabilities] = TransportCapabilities(
        encryption=Grade.NATIVE,
        authentication=Grade.NATIVE,
        lanes=Grade.NATIVE,
        zero_copy=Grade.NONE,
    )

    async def connect(self, address: Address, *, lanes: int, limits: Limits) -> Connection:
        """Log in, and see which way bulk data can go."""
        if address.scheme != "ssh" or address.query or not address.host:
            raise InputError(f"{address} is no address to connect to; write ssh://user@host")
        if not 2 <= lanes <= limits.lanes:
            raise InputError(f"{lanes} lanes; a connection has 2 to {limits.lanes}")
        call = _Call(address, self.options, lanes)
        try:
            await call.open()
            peer = PeerInfo(address=call.name, identity=address.host, encrypted=True)
            links = [call.openings[lane].link() for lane in range(lanes)]
            return SshConnection(
                links, limits, peer, self.options.close_timeout, list(call.processes.values())
            )
        except RuntimeError as error:  # no thread could be started
            await call.give_up()
            raise LinkError(f"{address}: {error}") from None
        except BaseException:
            await call.give_up()
            raise

    async def listen(self, address: Address, *, limits: Limits) -> Listener:
        """Listen at the unix socket that ``address.path`` names, for this user alone."""
        if address.host or address.port or address.query or not address.path:
            raise InputError(
                f"{address} cannot be listened on: sshd does that, and starts the agent when"
                " somebody logs in; write ssh:///path/of/a/socket for an agent's own socket"
            )
        return listen(address, limits, self.options)


class _Call:
    """One connection on its way."""

    def __init__(self, address: Address, options: SshOptions, lanes: int) -> None:
        self.name = str(address)
        self.openings: dict[int, Opening] = {}
        self.processes: dict[int, SshProcess] = {}
        self._address, self._options, self._lanes = address, options, lanes
        self._session = os.urandom(16)
        self._argv = command(address, options)
        self._logins = asyncio.Semaphore(_LOGINS)

    async def open(self) -> None:
        """Open all lanes, the first alone: its error then is the only one."""
        first = await self._log_in(0)
        direct = await self._direct(first)
        if direct is not None:
            self.openings[1] = direct.first
            self.name += f" (bulk: {direct.address})"
        await self._greet(0)
        if direct is not None:
            await self._greet(1)
        try:
            async with asyncio.TaskGroup() as group:
                for lane in range(1 if direct is None else 2, self._lanes):
                    group.create_task(self._add(lane, direct))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _add(self, lane: int, direct: Direct | None) -> None:
        if direct is None:
            async with self._logins:
                await self._log_in(lane)
        else:
            self.openings[lane] = await direct.open()
        await self._greet(lane)

    async def _log_in(self, lane: int) -> CallerOpening:
        process = self.processes[lane] = SshProcess(self._argv)
        opening = self.openings[lane] = CallerOpening(process.sock)
        try:
            async with asyncio.timeout(self._options.login_timeout):
                await opening.handshake()
        except TimeoutError:
            raise LinkError(
                f"{self._address}: no agent answered within {self._options.login_timeout:g} s"
                " (login_timeout)"
            ) from None
        except (LinkError, OSError) as error:
            raise await self._explained(process, error) from None
        return opening

    async def _explained(self, process: SshProcess, error: Exception) -> LinkError:
        """What ended ssh, or else what went wrong although it runs."""
        code = await process.wait(_LAST_WORDS)
        if code is None:
            return LinkError(f"{self._address}: {error}")
        return explain(str(self._address), self._options.remote_command, code, process.said)

    async def _direct(self, first: CallerOpening) -> Direct | None:
        if self._options.bulk == "ssh":
            return None
        try:
            return await find_direct(first, self._session, self._address, self._options)
        except LinkError as error:
            if self._options.bulk == "direct":
                raise LinkError(
                    f"{self._address}: no direct connection: {error}; open a port and name it"
                    " there (direct_ports), or use bulk=ssh"
                ) from None
            _log.warning("%s: bulk data goes through ssh: %s", self._address, error)
            return None

    async def _greet(self, lane: int) -> None:
        greeting = Greeting(session=self._session, lane=lane, lanes=self._lanes)
        opening = self.openings[lane]
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                await opening.send_greeting(greeting)
                greeting.check_answer(await opening.receive_greeting())
        except TimeoutError:
            raise LinkError(f"{self._address}: the agent there does not answer") from None
        except (LinkError, OSError) as error:
            raise LinkError(f"{self._address}: {error}") from None

    async def give_up(self) -> None:
        """Leave nothing behind."""
        for opening in self.openings.values():
            opening.close()
        for process in self.processes.values():
            with contextlib.suppress(OSError):
                process.sock.close()
            process.end()
        await asyncio.shield(
            asyncio.gather(*(each.close(_LAST_WORDS) for each in self.processes.values()))
        )
