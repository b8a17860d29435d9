"""Answers on the control socket; ``vmferry.export.control`` is the protocol."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from vmferry.errors import ProtocolError
from vmferry.export.control import MAX_REQUEST, ControlRefused, Request, read_request, write_reply
from vmferry.export.sockets import UnixListener, accept_all
from vmferry.export.tracking import DiskTracking

__all__ = ["ControlServer"]

_log = logging.getLogger(__name__)
_MAX_CLIENTS: Final = 64


class ControlServer:
    """Lets other processes track the disks of this one.

    Args:
        disks: what can be tracked, by export name.
        settle: returns when all that clients of an export have sent is done and answered.

    """

    def __init__(
        self,
        disks: Mapping[str, DiskTracking],
        *,
        settle: Callable[[str], Awaitable[None]],
        read_only: bool = False,
    ) -> None:
        self._disks, self._settle, self._read_only = disks, settle, read_only
        self._listener: UnixListener | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()

    def start(self, path: str | os.PathLike[str], mode: int = 0o600) -> None:
        """Listen on ``path``; raises ``InputError`` when it cannot be used."""
        self._listener = UnixListener(path, mode)
        self._accepting = asyncio.create_task(accept_all(self._listener.sock, self._welcome))

    async def close(self) -> None:
        """Stop listening and drop all clients. Tracking stays as it is. May be called twice."""
        ending = {task for task in (self._accepting, *self._clients) if task is not None}
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        if self._listener is not None:
            self._listener.close()

    def _welcome(self, sock: socket.socket) -> None:
        if len(self._clients) >= _MAX_CLIENTS:
            _log.warning("more than %d control clients; closing one", _MAX_CLIENTS)
            sock.close()
            return
        task = asyncio.create_task(self._serve(sock))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        task.add_done_callback(lambda _: sock.close())

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_REQUEST)
        client = object()
        try:
            await self._talk(client, reader, writer)
        except (OSError, ProtocolError) as error:
            _log.warning("control client dropped: %s", error)
        except Exception:
            _log.exception("serving a control client failed")
        finally:
            for tracking in self._disks.values():
                tracking.disown(client)
            writer.transport.abort()
            await writer.wait_closed()

    async def _talk(
        self, client: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            try:
                request = await read_request(reader)
                if request is None:
                    return
                reply = await self._answer(client, request)
            except ControlRefused as refused:
                reply = {"ok": False, "code": refused.code, "error": str(refused)}
            await write_reply(writer, reply)

    async def _answer(self, client: object, request: Request) -> dict[str, Any]:
        if request.op == "status":
            return {"ok": True, "disks": {n: self._status(t) for n, t in self._disks.items()}}
        tracking = self._disks.get(request.disk)
        if tracking is None:
            known = ", ".join(self._disks) or "none"
            raise ControlRefused(
                "no-disk", f"no disk named {request.disk!r} is exported; there are: {known}"
            )
        return {"ok": True, **await _OPERATIONS[request.op](self, client, tracking, request)}

    def _status(self, tracking: DiskTracking) -> dict[str, Any]:
        geometry = tracking.disk.geometry
        return {
            "size": geometry.size,
            "sector_size": geometry.sector_size,
            "read_only": self._read_only,
            "tracking": tracking.disk.tracking,
            "tracked": tracking.tracked,
            "block_size": tracking.disk.block_size,
        }

    async def _start(
        self, client: object, tracking: DiskTracking, request: Request
    ) -> dict[str, Any]:
        used = await tracking.start(client, request.block_size)
        return {"block_size": used, "session": tracking.session}

    async def _attach(
        self, client: object, tracking: DiskTracking, request: Request
    ) -> dict[str, Any]:
        return {"block_size": tracking.attach(client, request.session)}

    async def _harvest(
        self, client: object, tracking: DiskTracking, request: Request
    ) -> dict[str, Any]:
        number, taken = tracking.harvest(client, request.confirm)
        # Nobody changes a map that was taken, so a thread may read it while writes go on.
        encoded = await asyncio.get_running_loop().run_in_executor(None, taken.encode)
        return {"number": number, "map": encoded}

    async def _ack(
        self, client: object, tracking: DiskTracking, request: Request
    ) -> dict[str, Any]:
        tracking.confirm(client, request.confirm)
        return {}

    async def _drain(
        self, client: object, tracking: DiskTracking, request: Request
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(request.timeout):
                await self._settle(request.disk)
                await tracking.disk.drain()
        except TimeoutError:
            raise ControlRefused(
                "timeout",
                f"writes to disk {request.disk!r} did not end within {request.timeout:g} s",
            ) from None
        return {}

    async def _stop(
        self, client: object, tracking: DiskTracking, request: Request
    ) -> dict[str, Any]:
        tracking.stop(client, request.session)
        return {}


_OPERATIONS: Final = {
    "start": ControlServer._start,
    "attach": ControlServer._attach,
    "harvest": ControlServer._harvest,
    "ack": ControlServer._ack,
    "drain": ControlServer._drain,
    "stop": ControlServer._stop,
}
