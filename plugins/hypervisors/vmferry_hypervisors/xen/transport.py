"""Our end of xl's pipes: ``xl migrate`` started with the relay as its transport."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from vmferry.errors import HypervisorError
from vmferry_hypervisors.xen import relay
from vmferry_hypervisors.xen.pipes import Pipe
from vmferry_hypervisors.xen.program import Program

__all__ = ["Sender"]


class Sender:
    """``xl migrate`` of one domain, and its pipes.

    Attributes:
        xl: the program.
        data: what xl sends.
        words: what xl waits for.
        relay_gone: set when the relay has ended.

    """

    def __init__(self, domid: int, timeout: float) -> None:
        self._domid, self._timeout = domid, timeout
        self.xl = Program([])
        self.data: Pipe
        self.words: Pipe
        self.relay_gone = asyncio.Event()
        self._relay: socket.socket | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start xl, which waits for the receiver's banner; on failure nothing is left behind.

        Raises:
            HypervisorError: xl ends at once, or its transport does not start in time.

        """
        folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="vmferry-xl-")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                path = f"{folder}/relay"
                server.bind(path)
                server.listen(1)
                server.setblocking(False)
                command = shlex.join([sys.executable, "-I", str(Path(relay.__file__)), path])
                argv = ["xl", "migrate", "-s", "", str(self._domid), f"exec {command}"]
                self.xl = Program(argv)
                await self.xl.start()
                try:
                    await self._meet(server)
                except BaseException:
                    await self.xl.kill()
                    self.xl.close()
                    raise
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _meet(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        accepted = loop.create_task(loop.sock_accept(server))
        ended = loop.create_task(self.xl.ended())
        try:
            await asyncio.wait(
                {accepted, ended}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not accepted.done():
                raise self.xl.failure("the migration did not start")
            self._relay = accepted.result()[0]
        finally:
            for task in (accepted, ended):
                task.cancel()
            await asyncio.wait({accepted, ended})
        self._relay.setblocking(True)
        self._relay.settimeout(self._timeout)
        try:
            _, fds, _, _ = await asyncio.to_thread(socket.recv_fds, self._relay, 1, 2)
        except OSError as error:
            self._relay.close()
            raise HypervisorError(f"the relay of xl's stream does not answer: {error}") from error
        if len(fds) != 2:
            for fd in fds:
                os.close(fd)
            self._relay.close()
            raise HypervisorError("the relay of xl's stream ended before it began")
        self.data = Pipe(fds[0], "the stream from xl")
        self.words = Pipe(fds[1], "the answers to xl")
        self._relay.setblocking(False)
        self._watch = loop.create_task(self._watch_relay(self._relay))

    async def _watch_relay(self, connection: socket.socket) -> None:
        """The relay says nothing: when reading returns, it is gone."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_recv(connection, 1)
        self.relay_gone.set()

    async def hold(self) -> None:
        """From here on the guest stays suspended even if this process dies."""
        await self._tell(relay.HOLD)

    async def quit(self) -> None:
        """End the pipes: xl takes it for a failure and lets the guest run on."""
        self.data.close()
        self.words.close()
        await self._tell(relay.QUIT)

    async def _tell(self, word: bytes) -> None:
        if self._relay is not None and not self.relay_gone.is_set():
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(self._relay, word)

    async def close(self) -> None:
        """Forget everything; xl has ended. May be called twice."""
        if self._relay is None:
            return
        await self.quit()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        self._relay.close()
        self._relay = None
        self.xl.close()
