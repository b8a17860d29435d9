"""One connection to a QMP monitor, shared by its users; see ``vmferry_support.qmp``."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from qemu.qmp import (
    ConnectError,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)
from qemu.qmp.message import Message

from vmferry_support.unix import connect_unix, listener_of

__all__ = ["Absent", "Channel", "Heard", "Interrupted", "Refused", "Unreachable", "shared"]

_RETRY = 0.005
_GREETINGS = 3
_NOBODY = (FileNotFoundError, ConnectionRefusedError)


class Unreachable(Exception):
    """There is no monitor to be had; the message says which and why."""


class Absent(Unreachable):
    """Nobody listens there."""


class Interrupted(Exception):
    """The connection ended."""


class Refused(Exception):
    """QEMU answered with an error."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(reason)


class Heard:
    """Events of some names, in order, until the connection ends."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = frozenset(names)
        self._queue: asyncio.Queue[tuple[str, Mapping[str, Any], float] | None] = asyncio.Queue()

    def put(self, name: str, data: Mapping[str, Any], at: float) -> None:
        """Take an event, if it is wanted."""
        if not self.names or name in self.names:
            self._queue.put_nowait((name, data, at))

    def end(self) -> None:
        """There will be no more."""
        self._queue.put_nowait(None)

    async def next(self) -> tuple[str, Mapping[str, Any], float]:
        """The next event's name, data and time; ``Interrupted`` when there will be none."""
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)
            raise Interrupted
        return event


class Channel:
    """A greeted connection. Made by ``shared``; each user calls ``release`` once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.version = (0, 0, 0)
        self.process = 0
        self.listeners: set[Heard] = set()
        self.users = 0
        self._client = _QuietClient()
        self._watch: asyncio.Task[None] | None = None

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._client.runstate is not Runstate.RUNNING

    async def open(self, connection: socket.socket) -> None:
        """Be greeted on this connected socket, which is the channel's from here on."""
        self.process = listener_of(connection)
        # As a filter it hears every event without the client keeping it for ever.
        self._client.events.event_filter = self._hear
        await self._client.connect(connection)
        assert self._client.greeting is not None
        self.version = _version(self._client.greeting.QMP.version)
        self._watch = asyncio.create_task(self._watch_for_the_end())

    async def execute(self, command: str, arguments: Mapping[str, object]) -> Any:
        """Do a command; ``Refused`` or ``Interrupted`` if it was not done."""
        try:
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise Refused(error.error_class, error.error.error.desc) from error
        except (ExecInterruptedError, StateError) as error:
            raise Interrupted from error

    def send_descriptor(self, fd: int) -> None:
        """Send a descriptor for the next command to take."""
        try:
            self._client.send_fd_scm(fd)
        except StateError as error:
            raise Interrupted from error

    async def release(self) -> None:
        """One user fewer; the last one ends the connection."""
        self.users -= 1
        if not self.users:
            _forget(self)
            await self.close()

    async def close(self) -> None:
        """End the connection, even if the caller is cancelled meanwhile."""
        ending = asyncio.create_task(self._end())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait([ending])
            raise

    async def _end(self) -> None:
        if self._client.runstate is not Runstate.IDLE:
            with suppress(QMPError, OSError, EOFError):  # what had ended it before
                await self._client.disconnect()
        if self._watch is not None:
            await self._watch

    async def _watch_for_the_end(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        for heard in self.listeners:
            heard.end()

    def _hear(self, event: Message) -> bool:
        data, at = event.get("data", {}), _happened(event)
        for heard in self.listeners:
            heard.put(str(event["event"]), data if isinstance(data, Mapping) else {}, at)
        return False


def _happened(event: Message) -> float:
    """By the event loop's clock; not later than now, whatever QEMU's stamp says."""
    now, stamp = asyncio.get_running_loop().time(), event.get("timestamp")
    if not isinstance(stamp, Mapping):
        return now
    seconds, parts = stamp.get("seconds"), stamp.get("microseconds")
    if not (isinstance(seconds, int) and isinstance(parts, int)):
        return now
    return now - max(0.0, time.time() - seconds - parts / 1e6)


class _QuietClient(QMPClient):
    """A client that does not log what it also raises, nor each message.

    For its log it would format every message, which takes longer than all else that it does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logger = logging.getLogger("vmferry.qmp")
        self.logger.setLevel(logging.CRITICAL + 1)

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


def _version(said: Mapping[str, Any]) -> tuple[int, int, int]:
    numbers = said.get("qemu", {})
    return tuple(int(numbers.get(part, 0)) for part in ("major", "minor", "micro"))  # type: ignore[return-value]


class _Room:
    """The connections of one event loop, by the real path of their sockets."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self.locks: dict[str, asyncio.Lock] = {}


_rooms: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Room] = weakref.WeakKeyDictionary()


def _place(path: str) -> str:
    return os.path.realpath(path)


async def shared(path: str, timeout: float, *, appearing: bool) -> Channel:
    """The living connection to the socket at ``path`` in this event loop, or a new one.

    Raises:
        Unreachable: there is no monitor there that would greet us within ``timeout`` seconds.

    """
    room = _rooms.setdefault(asyncio.get_running_loop(), _Room())
    place = _place(path)
    async with room.locks.setdefault(place, asyncio.Lock()):
        channel = room.channels.get(place)
        if channel is None or channel.lost:
            channel = room.channels[place] = await _greeted(path, timeout, appearing=appearing)
        channel.users += 1
        return channel


def _forget(channel: Channel) -> None:
    for room in _rooms.values():
        for place in [place for place, other in room.channels.items() if other is channel]:
            del room.channels[place]


async def _greeted(path: str, timeout: float, *, appearing: bool) -> Channel:
    try:
        async with asyncio.timeout(timeout):
            for _ in range(_GREETINGS if appearing else 0):
                # A QEMU that is starting now and then tells an event before it greets.
                with suppress(ConnectError):
                    return await _opened(path, appearing=True)
            return await _opened(path, appearing=appearing)
    except TimeoutError:
        raise Unreachable(_not_served(path, timeout)) from None
    except OSError as error:
        kind = Absent if isinstance(error, _NOBODY) else Unreachable
        raise kind(f"cannot connect to QEMU's monitor at {path}: {error}") from error
    except QMPError as error:
        raise Unreachable(f"{path} is no QMP monitor socket: {error}") from error


async def _opened(path: str, *, appearing: bool) -> Channel:
    connection = await _connected(path, appearing=appearing)
    try:
        channel = Channel(path)
        await channel.open(connection)
    except BaseException:
        connection.close()
        raise
    return channel


async def _connected(path: str, *, appearing: bool) -> socket.socket:
    while True:
        try:
            return await connect_unix(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if not appearing:
                raise
            await asyncio.sleep(_RETRY)


def _not_served(path: str, timeout: float) -> str:
    if not os.path.lexists(path):
        return f"no QEMU monitor appeared at {path} within {timeout:g} s"
    return (
        f"QEMU's monitor at {path} did not greet within {timeout:g} s; another program, such as "
        f"libvirt, may hold it: give QEMU a second one (-qmp unix:PATH,server=on,wait=off)"
    )
