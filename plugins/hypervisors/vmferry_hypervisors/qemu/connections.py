"""What carries QEMU's migration: one socket that QEMU is given, or as many as it opens.

With the capability ``multifd`` QEMU sends memory by several connections beside the first. It opens
them itself, all to one address, for which a socket beside its monitor serves. At the destination
it waits for them at such an address; the first there must be the first here, and until a
connection has brought its first bytes QEMU does nothing but wait for these
(``migration_ioc_process_incoming`` in migration/migration.c). So each is made only once its first
bytes have come.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from abc import ABC, abstractmethod

from vmferry.api.hypervisor import ByteStream
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.relay import Relay, end_task, enlarge, failure_of, socket_pair
from vmferry_hypervisors.qemu.remains import memory_socket, qemu_of, remove_memory_socket, user_of
from vmferry_support.qmp import Qmp, QmpRefused
from vmferry_support.unix import connect_unix, listener_of

__all__ = ["Connections", "incoming", "outgoing"]

_LONGEST = 107
"""Bytes of a socket's path; see unix(7)."""
_PATIENCE = 30.0
"""Seconds that a QEMU may take to let a connection in."""
_OUT, _IN = "vmferry-out", "vmferry-in"


class Connections(ABC):
    """Between one QEMU and the streams to the other side. If one breaks all do.

    Attributes:
        uri: what QEMU is told to connect to, or to wait at.

    """

    uri: str

    @abstractmethod
    async def prepare(self) -> None:
        """All that QEMU's ``migrate`` needs; before ``migrate-incoming``, too."""

    @abstractmethod
    def start(self) -> None:
        """Begin to carry; QEMU has been told."""

    @property
    @abstractmethod
    def failure(self) -> BaseException | None:
        """Why it broke; ``None`` while it has not."""

    @abstractmethod
    async def broken(self) -> None:
        """Return never, but raise when it breaks."""

    @abstractmethod
    async def sent_all(self) -> None:
        """Return when all that QEMU had to say has been handed to the streams, ends included."""

    @abstractmethod
    async def withdraw(self) -> None:
        """Take back what ``prepare`` left in QEMU, if it was never used."""

    @abstractmethod
    async def close(self) -> None:
        """End it as it is, and leave nothing. May be called twice."""


def outgoing(qmp: Qmp, stream: ByteStream) -> Connections:
    """For the source's QEMU."""
    return _Opened(qmp, stream) if stream.channels else _Given(qmp, stream, _OUT)


def incoming(qmp: Qmp, stream: ByteStream) -> Connections:
    """For the destination's QEMU; started once it was told ``migrate-incoming``."""
    return _Reached(qmp, stream) if stream.channels else _Given(qmp, stream, _IN)


class _Given(Connections):
    """One socket, whose other end QEMU is given."""

    def __init__(self, qmp: Qmp, stream: ByteStream, name: str) -> None:
        self.uri = f"fd:{name}"
        self._qmp, self._name = qmp, name
        ours, self._theirs = socket_pair()
        self._relay = Relay(ours, stream)

    async def prepare(self) -> None:
        await self._qmp.give_fd(self._name, self._theirs.fileno())

    def start(self) -> None:
        self._theirs.close()
        self._relay.start()

    @property
    def failure(self) -> BaseException | None:
        return self._relay.failure

    async def broken(self) -> None:
        await self._relay.broken()

    async def sent_all(self) -> None:
        await self._relay.sent_all()

    async def withdraw(self) -> None:
        with contextlib.suppress(QmpRefused):
            await self._qmp.execute("closefd", fdname=self._name)

    async def close(self) -> None:
        self._theirs.close()
        await self._relay.close()


class _Several(Connections):
    """A relay for the stream and each of its channels, at a socket beside QEMU's monitor."""

    def __init__(self, qmp: Qmp, stream: ByteStream) -> None:
        self._qmp, self._stream = qmp, stream
        self._path = memory_socket(qmp.path)
        self.uri = f"unix:{self._path}"
        self._relays: list[Relay] = []
        self._work: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        if len(os.fsencode(self._path)) > _LONGEST:
            raise self._useless("it is too long for a socket")
        try:
            self._make()
        except OSError as error:
            raise self._useless(error.strerror or str(error)) from error

    def _make(self) -> None:
        """Make place for the socket, whoever is to make it."""
        self._path.unlink(missing_ok=True)

    def _useless(self, why: str) -> HypervisorError:
        return HypervisorError(
            f"{self._path}: {why}; use another folder for QEMU's monitors (option sockets), or "
            "leave --memory-channels out"
        )

    def start(self) -> None:
        self._work = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for stream in (self._stream, *self._stream.channels):
                    group.create_task(self._carry(stream))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await self._close_all()

    async def _close_all(self) -> None:
        for relay in self._relays:
            await relay.close()

    async def _carry(self, stream: ByteStream) -> None:
        try:
            connection, begins = await self._open(stream)
        except OSError as error:
            raise self._useless(error.strerror or str(error)) from error
        relay = Relay(enlarge(connection), stream, begins)
        self._relays.append(relay)
        relay.start()
        await relay.broken()

    @abstractmethod
    async def _open(self, stream: ByteStream) -> tuple[socket.socket, bytes]:
        """The connection for a stream, that of the first is made first; and what came before."""

    @property
    def failure(self) -> BaseException | None:
        return failure_of(self._work)

    async def broken(self) -> None:
        if self._work is not None:
            await asyncio.wait({self._work})
            if failure := self.failure:
                raise failure
        await asyncio.Event().wait()

    async def sent_all(self) -> None:
        for relay in self._relays:
            await relay.sent_all()

    async def withdraw(self) -> None:
        return

    async def close(self) -> None:
        if self._work is not None:
            await end_task(self._work)
        await self._close_all()  # unless it was cut short
        remove_memory_socket(self._qmp.path)


class _Opened(_Several):
    """Those that the source's QEMU opens: the one of its stream, and then those of its channels."""

    def __init__(self, qmp: Qmp, stream: ByteStream) -> None:
        super().__init__(qmp, stream)
        self._listener: socket.socket | None = None
        self._turn = asyncio.Lock()

    def _make(self) -> None:
        """Listen for QEMU alone, whoever it runs as."""
        super()._make()
        listener = self._listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        os.fchmod(listener.fileno(), 0o600)  # what bind(2) gives the file, but for the umask
        listener.bind(str(self._path))
        user, group = user_of(self._qmp)
        if user != os.geteuid():
            # QEMU may write to the folder, and have put something else in its place
            os.chown(self._path, user, group, follow_symlinks=False)
        listener.listen(1 + len(self._stream.channels))

    async def _open(self, stream: ByteStream) -> tuple[socket.socket, bytes]:
        assert self._listener is not None, "prepare it first"
        loop, qemu = asyncio.get_running_loop(), qemu_of(self._qmp)
        async with self._turn:
            while True:
                connection, _ = await loop.sock_accept(self._listener)
                if qemu in (0, listener_of(connection)):
                    return connection, b""
                connection.close()

    async def close(self) -> None:
        await super().close()
        if self._listener is not None:
            self._listener.close()


class _Reached(_Several):
    """Those to the destination's QEMU, which waits for them."""

    def __init__(self, qmp: Qmp, stream: ByteStream) -> None:
        super().__init__(qmp, stream)
        self._first = asyncio.Event()

    async def _open(self, stream: ByteStream) -> tuple[socket.socket, bytes]:
        begins = bytes(await stream.read())
        if stream is not self._stream:
            await self._first.wait()
        async with asyncio.timeout(_PATIENCE):
            connection = await connect_unix(str(self._path))
        self._first.set()
        return connection, begins
