"""The agent's unix socket, and the ports it opens for direct connections."""

from __future__ import annotations

import os
import pwd
import socket
import ssl
import struct
from functools import partial
from importlib.metadata import version
from pathlib import Path

from vmferry.api.transport import Address, Limits
from vmferry.errors import InputError, LinkError
from vmferry_transports.ssh.certificates import OneTime
from vmferry_transports.ssh.exchange import Answer, Ask
from vmferry_transports.ssh.opening import AgentOpening, DirectOpening
from vmferry_transports.ssh.options import SshOptions
from vmferry_transports.tcp.groups import Group
from vmferry_transports.tcp.listener import Door, TcpListener
from vmferry_transports.tcp.options import TcpOptions
from vmferry_transports.tcp.sockets import tune

__all__ = ["SshListener", "listen"]

_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 128
_MOST_PORT = 0xFFFF
_DOORS = 16
"""Most direct ports open at a time."""


def listen(address: Address, limits: Limits, options: SshOptions) -> SshListener:
    """Listen at the unix socket ``address.path``; one that nobody listens at is replaced.

    Raises:
        InputError: the socket cannot be made, or somebody listens there.

    """
    path = Path(address.path)
    _ports(options.direct_ports)
    sock = socket.socket(socket.AF_UNIX)
    try:
        if _answered(path):
            raise InputError(f"an agent listens at {path} already")
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.setblocking(False)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise InputError(f"cannot listen at {path}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
    return SshListener(sock, address, limits, options)


def _answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def _user_of(sock: socket.socket) -> str:
    """Name of the user at the other end; see unix(7), SO_PEERCRED."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, number, _ = _CREDENTIALS.unpack(packed)
    if number not in (0, os.geteuid()):
        raise LinkError(f"refused: user {number} is not the agent's")
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _ports(text: str) -> range:
    first, _, last = text.partition("-")
    lowest, highest = int(first or 0), int(last or first or 0)
    if not lowest <= highest <= _MOST_PORT:
        raise InputError(f"direct_ports {text!r}: write two ports, the lower first")
    return range(lowest, highest + 1)


def _server(port: int) -> socket.socket:
    """Listen on all addresses: only who has the certificate's key gets past the handshake."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=_BACKLOG)


class SshListener(TcpListener):
    """Gives a connection for each caller whose lanes are all there, whichever way they came."""

    def __init__(
        self, sock: socket.socket, address: Address, limits: Limits, options: SshOptions
    ) -> None:
        tcp = TcpOptions(
            handshake_timeout=options.login_timeout, close_timeout=options.close_timeout
        )
        super().__init__(sock, address, limits, tcp, None)
        self._ssh, self._path = options, Path(address.path)
        self._direct: dict[bytes, Door] = {}

    async def close(self) -> None:
        """Stop listening, and remove the socket."""
        if not self._closed:
            self._path.unlink(missing_ok=True)
        await super().close()

    async def _greet(self, sock: socket.socket, name: str) -> None:
        user = _user_of(sock)
        opening = AgentOpening(sock, version("vmferry"), user, partial(self._answer, user=user))
        await opening.handshake()
        await self._admit(opening, f"ssh://{user}@{opening.intro.client}".rstrip("@"))

    def _complete(self, session: bytes, group: Group) -> None:
        self._shut_direct(session)
        super()._complete(session, group)

    # -- direct connections

    async def _answer(self, ask: Ask, *, user: str) -> Answer:
        if self._ssh.bulk == "ssh":
            return Answer(refused="the agent's options want bulk=ssh")
        if len(self._direct) >= _DOORS:
            return Answer(refused="the agent has too many direct ports open; try again")
        mine = OneTime()
        try:
            context = mine.context(ask.certificate, server=True)
            sock = self._listen_direct()
        except (ssl.SSLError, OSError) as error:
            return Answer(refused=str(getattr(error, "strerror", None) or error))
        session = bytes.fromhex(ask.session)
        door = Door(sock, partial(self._greet_direct, context=context, session=session, user=user))
        self._open_direct(session, door)
        return Answer(port=sock.getsockname()[1], certificate=mine.pem)

    def _listen_direct(self) -> socket.socket:
        """Listen at the first port that is free."""
        failed = OSError("no port")
        for port in _ports(self._ssh.direct_ports):
            try:
                sock = _server(port)
            except OSError as error:
                failed = error
            else:
                sock.setblocking(False)
                return sock
        raise OSError(failed.errno or 0, f"direct_ports: {failed.strerror or failed}")

    def _open_direct(self, session: bytes, door: Door) -> None:
        self._shut_direct(session)
        self._direct[session] = door
        self._open(door)
        self._loop.call_later(self._ssh.login_timeout, self._shut_late, session, door)

    def _shut_late(self, session: bytes, door: Door) -> None:
        if self._direct.get(session) is door:
            self._shut_direct(session)

    def _shut_direct(self, session: bytes) -> None:
        """Close the port of a session, if it has one."""
        if (door := self._direct.pop(session, None)) is not None:
            self._shut(door)

    async def _greet_direct(
        self,
        sock: socket.socket,
        name: str,
        *,
        context: ssl.SSLContext,
        session: bytes,
        user: str,
    ) -> None:
        tune(sock, self._options)
        opening = DirectOpening(sock, context, session, user)
        await opening.handshake()
        await self._admit(opening, name)
