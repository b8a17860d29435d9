"""Both ends of a connection through ssh, between its start and its first frame."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from vmferry.errors import LinkError
from vmferry_transports.ssh.exchange import (
    EXCHANGE_VERSION,
    HEADER,
    MAGIC,
    Answer,
    Ask,
    Banner,
    Intro,
    body_size,
    pack,
    unpack,
)
from vmferry_transports.tcp.greeting import GREETING_SIZE, Greeting
from vmferry_transports.tcp.opening import Opening, TlsOpening

__all__ = ["AgentOpening", "CallerOpening", "DirectOpening"]

_log = logging.getLogger("vmferry_transports.ssh")

_NOISE = 64 << 10
_INTRO = 1024


class _SshOpening(Opening):
    encrypted = True

    async def _line(self, most: int) -> bytes:
        """One line, byte by byte: what follows it belongs to somebody else."""
        line = b""
        while not line.endswith(b"\n"):
            byte = await self._receive(1)
            if not byte:
                raise LinkError("ended the connection before the agent answered")
            line += byte
            if len(line) > most:
                raise LinkError("sent a line that is too long")
        return line

    async def _body(self, rest: bytes = b"") -> bytes:
        header = rest + await self._receive_exactly(HEADER.size - len(rest))
        return await self._receive_exactly(body_size(header))


class CallerOpening(_SshOpening):
    """The end of the caller; ``banner`` is there after the handshake."""

    banner: Banner

    async def handshake(self) -> None:
        """Wait for the agent's line, past what a shell prints at login."""
        seen = 0
        while (banner := Banner.decode(line := await self._line(_NOISE))) is None:
            seen += len(line)
            _log.info("passed over: %s", line.decode(errors="replace").rstrip())
            if seen > _NOISE:
                raise LinkError("sent a lot, but no greeting of an agent; see its shell's profile")
        if banner.version != EXCHANGE_VERSION:
            raise LinkError(
                f"speaks version {banner.version} of the ssh transport (vmferry {banner.release}),"
                f" this host version {EXCHANGE_VERSION}; update the older of the two"
            )
        self.banner = banner

    async def ask(self, ask: Ask) -> Answer:
        """Ask for a direct connection."""
        await self._send(pack(ask))
        return unpack(await self._body(), Answer)


class AgentOpening(_SshOpening):
    """The end of the agent.

    Args:
        sock: a connection to its unix socket.
        release: of vmferry here.
        identity: the user that logged in.
        answer: called with a wish for a direct connection and who wishes it.

    """

    def __init__(
        self,
        sock: socket.socket,
        release: str,
        identity: str,
        answer: Callable[[Ask], Awaitable[Answer]],
    ) -> None:
        super().__init__(sock)
        self.identity = identity
        self.intro = Intro()
        self._release, self._answer = release, answer

    async def handshake(self) -> None:
        """Hear where the caller comes from, and say who is here."""
        self.intro = unpack(await self._line(_INTRO), Intro)
        server = self.intro.server if self.intro.server.isprintable() else ""
        banner = Banner(
            version=EXCHANGE_VERSION, release=self._release, server="".join(server.split())
        )
        await self._send(banner.encode())

    async def receive_greeting(self) -> Greeting:
        """Receive the greeting; answer a wish that comes before it."""
        start = await self._receive_exactly(len(MAGIC))
        if start == MAGIC:
            await self._send(pack(await self._answer(unpack(await self._body(start), Ask))))
            start = await self._receive_exactly(len(MAGIC))
        rest = await self._receive_exactly(GREETING_SIZE - len(start))
        return Greeting.decode(start + rest)


class DirectOpening(TlsOpening):
    """The agent's end of a direct connection, whose caller is known by its certificate."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, session: bytes, user: str
    ) -> None:
        super().__init__(sock, context)
        self._session, self._user = session, user

    async def handshake(self) -> None:
        """Agree on keys: the caller is then who logged in."""
        await super().handshake()
        self.identity = self._user

    async def receive_greeting(self) -> Greeting:
        """Receive a greeting of the session that the certificate is for."""
        greeting = await super().receive_greeting()
        if greeting.session != self._session:
            raise LinkError("greets for another session than the one it was let in for")
        return greeting
