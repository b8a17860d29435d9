"""A destination agent in a process of its own, for the demo."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmferry.api import Address
from vmferry.errors import VmferryError

__all__ = ["AgentProcess"]

_START = 120.0
"""Seconds until it listens; it takes one, but several times ten where many programs want the
processor."""
_END = 30.0


class AgentProcess:
    """``migrate serve --once`` as a child process. Use it with ``async with``.

    Attributes:
        address: where it listens.
        summary: its own account of the migration, once it has finished.

    """

    def __init__(self, folder: Path, url: str, options: Mapping[str, Sequence[str]]) -> None:
        self.address: Address
        self.summary: dict[str, Any] = {}
        self._folder, self._url, self._options = folder, url, options
        self._process: Process
        self._reading: asyncio.Task[None]
        self._listening: asyncio.Future[str]
        self._complaints: deque[str] = deque(maxlen=20)

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "vmferry", "serve", self._url, "--once", "--json"]
        command += ["--pool", str(self._folder / "pool")]
        command += ["--state-dir", str(self._folder / "agent")]
        for kind, settings in self._options.items():
            for setting in settings:
                command += [f"--{kind}-opt", setting]
        return command

    async def __aenter__(self) -> AgentProcess:
        (self._folder / "pool").mkdir(parents=True, exist_ok=True)
        self._listening = asyncio.get_running_loop().create_future()
        self._process = await asyncio.create_subprocess_exec(
            *self._command(), stdout=PIPE, stderr=PIPE, start_new_session=True, limit=1 << 20
        )
        self._reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(_START):
                self.address = Address.parse(await self._listening)
        except TimeoutError:
            await self.close()
            raise VmferryError(
                f"the destination agent did not start within {_START:g} seconds"
            ) from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            await self._ended()
        await self.close()

    async def close(self) -> None:
        """End it, however far it is."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                break
            self._process.send_signal(number)
            await self._ended(5)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _ended(self, patience: float = _END) -> None:
        await asyncio.wait([asyncio.create_task(self._process.wait())], timeout=patience)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        await asyncio.gather(self._events(self._process.stdout), self._errors(self._process.stderr))
        if not self._listening.done():
            complaint = "\n".join(self._complaints) or "it said nothing"
            text = f"the destination agent did not start: {complaint}"
            self._listening.set_exception(VmferryError(text))

    async def _events(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            event = json.loads(line)
            if event.get("name") == "listening" and not self._listening.done():
                self._listening.set_result(event["facts"]["address"])
            if event["event"] == "finished":
                self.summary = event

    async def _errors(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self._complaints.append(line.decode(errors="replace").rstrip())
