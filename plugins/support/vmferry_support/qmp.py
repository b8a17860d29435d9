"""QEMU's machine protocol on a unix socket: commands, and the events of a time.

::

    async with await Qmp.connect("/run/vm.qmp") as qmp:
        with qmp.listen("MIGRATION") as events:
            await qmp.execute("migrate", uri="unix:/run/relay")
            await events.wait(lambda event: event.data["status"] == "completed", timeout=60)

QEMU serves one client per monitor: a second one may connect, but is not greeted before the first
has gone. So all that in one event loop connect to one socket share one connection. libvirt never
lets go of the monitor that it has; a guest of libvirt's needs a second one for us (``-qmp
unix:PATH,server=on,wait=off``, by ``qemu:commandline`` in its XML).

The protocol is spoken by ``qemu.qmp`` of the QEMU project; see docs/interop/qmp-spec.rst there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vmferry.errors import HypervisorError
from vmferry_support.qmp_channel import (
    Absent,
    Channel,
    Heard,
    Interrupted,
    Refused,
    Unreachable,
    shared,
)

__all__ = [
    "Event",
    "Listener",
    "Qmp",
    "QmpAbsent",
    "QmpError",
    "QmpLost",
    "QmpRefused",
    "QmpTimeout",
    "awaited_socket",
]

_ENOUGH = 30.0
"""Seconds for a command to be answered: long, since QEMU's main loop may wait for storage."""


def awaited_socket(path: str) -> str:
    """The options of a monitor's socket for who starts a QEMU and connects to it at once.

    ``-qmp unix:OPTIONS``, or ``--chardev socket,id=ID,OPTIONS`` of qemu-storage-daemon. It goes no
    further than to this socket before a client is there. With ``wait=off`` it would listen in its
    main thread first and then move the listener to another one, and a client that comes meanwhile
    is accepted by both: QEMU 7.2 then hangs in accept(2), or crashes.
    """
    return f"path={path.replace(',', ',,')},server=on,wait=on"


class QmpError(HypervisorError):
    """A command was not done, as far as is known.

    Attributes:
        command: its name; ``""`` if it is about the connection or an event.

    """

    def __init__(self, message: str, command: str = "") -> None:
        self.command = command
        super().__init__(message)


class QmpAbsent(QmpError):
    """There is no monitor: its socket is missing, or nobody listens there."""


class QmpRefused(QmpError):
    """QEMU answered that it does not do the command; nothing was changed.

    Attributes:
        kind: QMP's error class, ``"GenericError"``, ``"CommandNotFound"``, ``"DeviceNotFound"``.
        reason: what QEMU said.

    """

    def __init__(self, command: str, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(f"QEMU refused {command}: {reason}", command)


class QmpLost(QmpError):
    """The connection ended: QEMU is gone. A command under way was done or not."""


class QmpTimeout(QmpError):
    """There was no answer or event in time. A command may be done later nevertheless."""


class Event(NamedTuple):
    """One event: its name, as ``"STOP"``, its data, and the event loop's time of it."""

    name: str
    data: Mapping[str, Any]
    at: float = 0.0


class Listener:
    """The events of some names from the moment it was made; see ``Qmp.listen``."""

    def __init__(self, channel: Channel, names: tuple[str, ...]) -> None:
        self._channel, self._heard = channel, Heard(names)

    def __enter__(self) -> Listener:
        self._channel.listeners.add(self._heard)
        if self._channel.lost:
            self._heard.end()
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.listeners.discard(self._heard)

    async def wait(
        self, accept: Callable[[Event], bool] | None = None, *, timeout: float | None
    ) -> Event:
        """The next event that ``accept`` (default: every) is true for; those before it are dropped.

        Events that came before this call but after the listener was made count.

        Args:
            accept: called with each event, once.
            timeout: seconds, or ``None`` for as long as it takes.

        Raises:
            QmpTimeout: there was none in time.
            QmpLost: the connection ended, and none came before that.

        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    event = Event(*await self._heard.next())
                    if accept is None or accept(event):
                        return event
        except Interrupted:
            raise QmpLost(f"{self._what()}: QEMU ended the connection") from None
        except TimeoutError:
            raise QmpTimeout(f"{self._what()}: none within {timeout:g} s") from None

    def _what(self) -> str:
        names = " or ".join(sorted(self._heard.names)) or "any event"
        return f"waiting for {names} at {self._channel.path}"


class Qmp:
    """One user's part of the connection to a monitor. Use ``async with``, or call ``close``."""

    def __init__(self, channel: Channel) -> None:
        self._channel: Channel | None = channel
        self.path = channel.path
        self.version = channel.version
        """Of QEMU: major, minor, micro."""
        self.process = channel.process
        """Number of the process that made the socket, QEMU or libvirt; 0 if that cannot be seen."""

    @classmethod
    async def connect(cls, path: str, *, timeout: float = 10.0, appearing: bool = False) -> Qmp:
        """Connect to the monitor socket at ``path``, or share the connection there is.

        Args:
            path: of the socket.
            timeout: seconds until QEMU's greeting.
            appearing: QEMU was just started: wait for the socket to appear.

        Raises:
            QmpAbsent: nobody listens there.
            QmpError: it is no QMP monitor, or another program has it.

        """
        try:
            return cls(await shared(path, timeout, appearing=appearing))
        except Unreachable as error:
            kind = QmpAbsent if isinstance(error, Absent) else QmpError
            raise kind(str(error)) from error

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        /,
        *,
        timeout: float = _ENOUGH,
        **more: object,
    ) -> Any:
        """Do a command and return what QEMU answers.

        Args:
            command: as ``"block-export-add"``.
            arguments: as QMP has them.
            timeout: seconds for the answer.
            more: further arguments; ``_`` in their names stands for ``-``. One that is ``None`` is
                left out.

        Raises:
            QmpRefused: QEMU does not do it.
            QmpLost: the connection ended before the answer.
            QmpTimeout: there was no answer in time.

        """
        given = {name.replace("_", "-"): value for name, value in more.items() if value is not None}
        whole = {**(arguments or {}), **given}
        try:
            async with asyncio.timeout(timeout):
                return await self._open(command).execute(command, whole)
        except Refused as refused:
            raise QmpRefused(command, refused.kind, refused.reason) from None
        except Interrupted:
            raise QmpLost(f"{command}: QEMU at {self.path} ended the connection", command) from None
        except TimeoutError:
            raise QmpTimeout(
                f"{command}: QEMU at {self.path} did not answer within {timeout:g} s", command
            ) from None

    async def give_fd(self, name: str, fd: int, *, timeout: float = _ENOUGH) -> None:
        """Give QEMU a descriptor by ``getfd``, for ``fd:NAME``; the caller's stays open.

        Nothing else may be under way on this connection.
        """
        try:
            self._open("getfd").send_descriptor(fd)
        except OSError as error:
            raise QmpLost(f"getfd: QEMU at {self.path}: {error}", "getfd") from error
        except Interrupted:
            raise QmpLost(f"getfd: QEMU at {self.path} ended the connection", "getfd") from None
        await self.execute("getfd", fdname=name, timeout=timeout)

    def listen(self, *names: str) -> Listener:
        """Hear the events of these names (none: all) while in its ``with`` block."""
        return Listener(self._open("listen"), names)

    @property
    def lost(self) -> bool:
        """Whether the connection has ended, by whichever side."""
        return self._channel is None or self._channel.lost

    async def close(self) -> None:
        """Let go of the connection; it ends with its last user. May be called twice."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.release()

    async def __aenter__(self) -> Qmp:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _open(self, command: str) -> Channel:
        if self._channel is None:
            raise QmpLost(f"{command}: the connection to {self.path} was closed", command)
        return self._channel
