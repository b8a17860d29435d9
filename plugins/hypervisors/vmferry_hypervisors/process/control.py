"""Commands to a guest over its control socket: one line of JSON each way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from vmferry.errors import GuestStopped, HypervisorError

__all__ = ["Command", "ControlServer", "Reply", "call"]

_LONGEST = 64 * 1024
_SOCKET = "control.sock"


class Command(msgspec.Struct):
    """What a guest is told: suspend, resume, pivot, quiesce, status or quit.

    ``disk`` and ``url`` say which disk a ``pivot`` moves, and where to.
    """

    do: str
    disk: str = ""
    url: str = ""


class Reply(msgspec.Struct):
    """What it answers when that is done; ``error`` is empty if all went well."""

    error: str = ""
    state: str = ""


Answer = Callable[[Reply], None]


class _Client:
    """One connection to the control socket, at the guest's side."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.input = bytearray()

    def answer(self, reply: Reply) -> None:
        """Send a reply; one who has gone away need not hear it."""
        with contextlib.suppress(OSError):
            self.connection.send(msgspec.json.encode(reply) + b"\n")


class ControlServer:
    """Takes commands; never waits."""

    def __init__(self, folder: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            self._listener.bind(f"/proc/self/fd/{descriptor}/{_SOCKET}")
        finally:
            os.close(descriptor)
        self._listener.listen(8)
        self._listener.setblocking(False)
        self._clients: dict[int, _Client] = {}

    def descriptors(self) -> list[int]:
        """What becomes readable when there is something to ``serve``."""
        return [self._listener.fileno(), *self._clients]

    def serve(self, handle: Callable[[Command, Answer], None]) -> None:
        """Pass each command that has come to ``handle``, with the way to answer it."""
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._clients[connection.fileno()] = _Client(connection)
        for client in list(self._clients.values()):
            self._read(client, handle)

    def _read(self, client: _Client, handle: Callable[[Command, Answer], None]) -> None:
        try:
            piece = client.connection.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        client.input += piece
        if not piece or len(client.input) > _LONGEST:
            del self._clients[client.connection.fileno()]
            client.connection.close()
            return
        *lines, rest = client.input.split(b"\n")
        client.input = bytearray(rest)
        for line in lines:
            self._dispatch(bytes(line), client, handle)

    def _dispatch(
        self, line: bytes, client: _Client, handle: Callable[[Command, Answer], None]
    ) -> None:
        try:
            handle(msgspec.json.decode(line, type=Command), client.answer)
        except (msgspec.MsgspecError, OSError, HypervisorError, ValueError) as error:
            client.answer(Reply(error=str(error)))


async def call(folder: Path, command: Command, timeout: float) -> Reply:
    """Give a guest a command and wait until it is done.

    Raises:
        GuestStopped: nobody listens, or it went away before it answered.
        HypervisorError: the guest refused, or did not answer within ``timeout`` seconds.

    """
    try:
        async with asyncio.timeout(timeout):
            line = await _exchange(folder, msgspec.json.encode(command) + b"\n")
    except TimeoutError:
        raise HypervisorError(
            f"guest {folder.name} did not {command.do} within {timeout:g} s"
        ) from None
    except OSError as error:
        raise GuestStopped(
            f"guest {folder.name} cannot be told to {command.do}: {error}"
        ) from error
    if not line:
        raise GuestStopped(f"guest {folder.name} ended when told to {command.do}")
    reply = msgspec.json.decode(line, type=Reply)
    if reply.error:
        raise HypervisorError(f"guest {folder.name}: {command.do}: {reply.error}")
    return reply


async def _exchange(folder: Path, line: bytes) -> bytes:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        path = f"/proc/self/fd/{descriptor}/{_SOCKET}"
        reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST)
    finally:
        os.close(descriptor)
    try:
        writer.write(line)
        return await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
