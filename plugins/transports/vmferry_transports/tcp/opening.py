"""A socket between its connection and its first frame, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from vmferry.errors import LinkError
from vmferry_transports.tcp import tls
from vmferry_transports.tcp.greeting import GREETING_SIZE, MAGIC, Greeting, Refusal
from vmferry_transports.tcp.link import Link, TlsLink

__all__ = ["Opening", "TlsOpening"]

_CHUNK = 16 << 10
_LINGER = 1.0
_REFUSED = Greeting(session=bytes(16), lane=0, lanes=0)
_TLS_RECORD = b"\x16\x03"
"""How the first message of TLS starts: a handshake record, RFC 8446 section 5.1."""


class Opening:
    """A connected, non-blocking socket that is to become a lane.

    Errors are ``LinkError`` whose text goes on after the name of the peer.
    """

    identity = ""
    names: frozenset[str] = frozenset()
    encrypted = False

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def handshake(self) -> None:
        """Agree on keys, where there are any."""

    async def send_greeting(self, greeting: Greeting) -> None:
        """Send a greeting or its answer."""
        await self._send(greeting.encode())

    async def receive_greeting(self) -> Greeting:
        """Receive a greeting or its answer; tell a peer with TLS that it is off."""
        data = await self._receive_exactly(GREETING_SIZE)
        if data.startswith(_TLS_RECORD):
            await self._send(_REFUSED.refused(Refusal.NO_TLS).encode())
            raise LinkError("speaks TLS, which is off here; set tls_cert, tls_key and tls_ca")
        return Greeting.decode(data)

    async def _receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = await self._receive(size - len(data))
            if not chunk:
                raise LinkError("ended the connection before the greeting")
            data += chunk
        return data

    async def _receive(self, size: int) -> bytes:
        return await self._loop.sock_recv(self.sock, size)

    async def _send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    def link(self) -> Link:
        """Hand over the socket to a lane."""
        return Link(self.sock)

    def close(self) -> None:
        """Close the socket at once."""
        self.sock.close()

    async def close_gently(self) -> None:
        """Close after the peer has had a chance to read why.

        A socket closed with unread data resets the connection, which can overtake the answer.
        """
        try:
            with contextlib.suppress(OSError, TimeoutError):
                self.sock.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(_LINGER):
                    while await self._loop.sock_recv(self.sock, _CHUNK):
                        pass
        finally:
            self.sock.close()


class TlsOpening(Opening):
    """An ``Opening`` that speaks TLS; ``name`` is the listener's, at the connecting end."""

    encrypted = True

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, name: str | None = None
    ) -> None:
        super().__init__(sock)
        self._name = name
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=name is None, server_hostname=name
        )
        self._first = True

    async def handshake(self) -> None:
        """Agree on keys and learn who the peer is."""
        try:
            await self._run_handshake()
        except ssl.SSLError as error:
            raise tls.explain(error, self._name) from None
        certificate = self._tls.getpeercert()
        self.identity, self.names = tls.identity(certificate), frozenset(tls.names(certificate))

    async def _run_handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                pass
            finally:
                await self._flush()  # also the alert that tells the peer what is wrong
            if not await self._feed():
                raise LinkError("ended the connection during the TLS handshake")

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._loop.sock_sendall(self.sock, data)

    async def _feed(self) -> bool:
        """Pass on what arrives; false at its end."""
        chunk = await self._loop.sock_recv(self.sock, _CHUNK)
        if self._first and chunk:
            self._first = False
            await self._check_tls(chunk)
        self._incoming.write(chunk)
        return bool(chunk)

    async def _check_tls(self, chunk: bytes) -> None:
        """Recognise a peer without TLS by its first bytes, and tell it."""
        if not MAGIC.startswith(chunk[: len(MAGIC)]):
            return
        if self._name is not None:
            raise LinkError("speaks no TLS; set tls_cert, tls_key and tls_ca there too, or nowhere")
        await self._loop.sock_sendall(self.sock, _REFUSED.refused(Refusal.NEEDS_TLS).encode())
        raise LinkError("speaks no TLS, which is on here; set tls_cert, tls_key and tls_ca there")

    async def _receive(self, size: int) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                if not await self._feed():
                    return b""
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise tls.explain(error, self._name) from None

    async def _send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    def link(self) -> Link:
        """Hand over the socket, with its keys, to a lane."""
        return TlsLink(self.sock, self._tls, self._incoming, self._outgoing)
