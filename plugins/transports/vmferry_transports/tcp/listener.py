"""Accepting sockets and grouping them into connections."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from vmferry.api.transport import Address, Connection, Limits, Listener
from vmferry.errors import ConnectionLost, LinkError
from vmferry_transports.tcp.connection import TcpConnection
from vmferry_transports.tcp.greeting import VERSION, Greeting, Refusal
from vmferry_transports.tcp.groups import Group, Groups
from vmferry_transports.tcp.opening import Opening, TlsOpening
from vmferry_transports.tcp.options import TcpOptions
from vmferry_transports.tcp.sockets import name_of, tune

__all__ = ["Door", "TcpListener"]

_log = logging.getLogger("vmferry_transports.tcp")

_HANDSHAKES = 256
"""Most sockets in their handshake; beyond, the one that has taken longest is dropped."""

_READY = 64
"""Most connections that wait for ``accept``; beyond, peers are told to try again."""

_PAUSE = 0.1


class Door:
    """A listening socket, and what greets those who come through it."""

    def __init__(
        self, sock: socket.socket, greet: Callable[[socket.socket, str], Awaitable[None]]
    ) -> None:
        self.sock, self.greet = sock, greet


class TcpListener(Listener):
    """Accepts sockets, greets each in a task of its own, and gives complete connections."""

    def __init__(
        self,
        sock: socket.socket,
        address: Address,
        limits: Limits,
        options: TcpOptions,
        context: ssl.SSLContext | None,
    ) -> None:
        self._address, self._limits = address, limits
        self._options, self._context = options, context
        self._ready: asyncio.Queue[Group | None] = asyncio.Queue()
        self._groups = Groups(options.handshake_timeout)
        self._greeting: dict[asyncio.Task[None], _Guard] = {}
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._doors: set[Door] = set()
        self._open(Door(sock, self._greet))

    @property
    def address(self) -> Address:
        """Where it listens, with the port that was taken."""
        return self._address

    async def accept(self) -> Connection:
        """Return the next connection whose lanes are all there."""
        group = None if self._closed else await self._ready.get()
        if group is None:
            self._ready.put_nowait(None)  # for whoever else waits
            raise ConnectionLost(f"the listener {self._address} is closed")
        return TcpConnection(group.links(), self._limits, group.peer, self._options.close_timeout)

    async def close(self) -> None:
        """Stop listening; sockets and connections that nobody has accepted are dropped."""
        self._closed = True
        for door in list(self._doors):
            self._shut(door)
        tasks = list(self._greeting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._groups.close()
        while not self._ready.empty():
            if (group := self._ready.get_nowait()) is not None:
                group.close()
        self._ready.put_nowait(None)

    def _open(self, door: Door) -> None:
        """Take who comes from now on; the listener owns the socket."""
        self._doors.add(door)
        self._loop.add_reader(door.sock, self._take, door)

    def _shut(self, door: Door) -> None:
        """Take nobody any more; may be called twice."""
        if door in self._doors:
            self._doors.remove(door)
            self._loop.remove_reader(door.sock)
            door.sock.close()

    def _take(self, door: Door) -> None:
        """Take one socket; called when there is one."""
        try:
            sock, where = door.sock.accept()
        except BlockingIOError:
            return
        except OSError as error:  # the peer is gone already, or no descriptors are left
            _log.warning("%s: accept: %s", self._address, error.strerror or error)
            self._loop.remove_reader(door.sock)
            self._loop.call_later(_PAUSE, self._resume, door)
            return
        sock.setblocking(False)
        if len(self._greeting) >= _HANDSHAKES:
            next(iter(self._greeting)).cancel()
        guard = _Guard(sock)
        task = asyncio.create_task(self._welcome(guard, name_of(where), door))
        self._greeting[task] = guard
        task.add_done_callback(self._welcomed)

    def _resume(self, door: Door) -> None:
        if door in self._doors:
            self._loop.add_reader(door.sock, self._take, door)

    def _welcomed(self, task: asyncio.Task[None]) -> None:
        """Close a socket that did not become a lane, also if its task never ran."""
        self._greeting.pop(task).close()

    async def _welcome(self, guard: _Guard, name: str, door: Door) -> None:
        """Make a lane of a socket, or log why not."""
        try:
            async with asyncio.timeout(self._options.handshake_timeout):
                await door.greet(guard.sock, name)
            guard.taken = True
        except TimeoutError:
            _log.warning("%s: no greeting in time (handshake_timeout)", name)
        except LinkError as error:
            _log.warning("%s: %s", name, error)
            await Opening(guard.sock).close_gently()
        except OSError as error:
            _log.warning("%s: handshake failed: %s", name, error.strerror or error)

    async def _greet(self, sock: socket.socket, name: str) -> None:
        tune(sock, self._options)
        opening = TlsOpening(sock, self._context) if self._context else Opening(sock)
        await opening.handshake()
        await self._admit(opening, name)

    async def _admit(self, opening: Opening, name: str) -> None:
        """Greet after the handshake, and add the socket to its group."""
        greeting = await opening.receive_greeting()
        refusal = self._refusal(greeting, opening)
        await opening.send_greeting(greeting.refused(refusal))
        if refusal:
            raise LinkError(f"refused: {refusal.name.lower()}{_who(opening)}")
        group = self._groups.add(greeting, opening, name)
        if group is not None:
            self._complete(greeting.session, group)

    def _complete(self, session: bytes, group: Group) -> None:
        """All lanes of a session are there."""
        self._ready.put_nowait(group)

    def _refusal(self, greeting: Greeting, opening: Opening) -> Refusal:
        if self._options.allow and not opening.names.intersection(self._options.allow):
            return Refusal.NOT_ALLOWED
        if greeting.version != VERSION:
            return Refusal.VERSION
        if not 2 <= greeting.lanes <= self._limits.lanes or greeting.lane >= greeting.lanes:
            return Refusal.LANES
        if not self._groups.fits(greeting, opening.identity):
            return Refusal.SESSION
        return Refusal.BUSY if self._ready.qsize() >= _READY else Refusal.NONE


def _who(opening: Opening) -> str:
    return f" (certificate of {', '.join(sorted(opening.names))})" if opening.names else ""


class _Guard:
    """Closes a socket unless somebody else has taken it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.taken = sock, False

    def close(self) -> None:
        if not self.taken:
            self.sock.close()
