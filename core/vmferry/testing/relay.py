"""A relay between the ends of a connection over TCP, which can cut it short or damage it."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

__all__ = ["Relay"]

_PIECE = 1 << 16


class Relay:
    """Passes bytes on to ``host`` and ``port``, from a port of its own.

    Bytes that went towards the target are counted from ``arm`` on, over all connections; then its
    faults hold.

    Attributes:
        port: where to connect to instead, on 127.0.0.1.
        happened: set when the fault has been.

    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.happened = asyncio.Event()
        self._target = host, port
        self._passed = 0
        self._cut = self._damage = -1
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Relay:
        """Listen."""
        self._server = await asyncio.start_server(self._arrived, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """End all connections."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # for the transports to let go of their sockets

    def arm(self, *, cut: int = -1, damage: int = -1) -> None:
        """End everything after ``cut`` bytes, or change the four bytes from ``damage`` on."""
        self._passed, self._cut, self._damage = 0, cut, damage

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            there, back = await asyncio.open_connection(*self._target)
            writers.append(back)
            self._writers.add(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, back, counted=True))
                group.create_task(self._pass(there, writer, counted=False))
        except* OSError:
            pass
        finally:
            for each in writers:
                each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        while data := await reader.read(_PIECE):
            if counted:
                data = self._faulty(data)
            writer.write(data)
            await writer.drain()
            if self.happened.is_set() and self._cut >= 0:
                self._end()
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _faulty(self, data: bytes) -> bytes:
        first, self._passed = self._passed, self._passed + len(data)
        if 0 <= self._cut < self._passed:
            data = data[: max(0, self._cut - first)]
            self.happened.set()
        if self._damage >= 0:
            data = self._damaged(data, first)
        return data

    def _damaged(self, data: bytes, first: int) -> bytes:
        changed = bytearray(data)
        for place in range(self._damage - first, self._damage - first + 4):
            if 0 <= place < len(changed):
                changed[place] ^= 0xFF
                self.happened.set()
        return bytes(changed)

    def _end(self) -> None:
        """Everything ends in good order as far as TCP is concerned; nobody may connect again."""
        self._server.close()
        for writer in self._writers:
            writer.close()
