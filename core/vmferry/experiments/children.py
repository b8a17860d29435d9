"""``migrate`` as a child process that tells what happens as JSON, one object per line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from vmferry.errors import HypervisorError

__all__ = ["Child", "ChildFailed"]

_END = 20.0
_LINE = 1 << 22
Listen = Callable[[dict[str, Any]], None]


class ChildFailed(HypervisorError):
    """A child process ended without doing what it was for; says what it said last."""


class Child:
    """A process that is ended when the block is left. Use it with ``async with``.

    Args:
        command: the program and its arguments.
        listen: gets each object the process prints.
        name: for messages.

    """

    def __init__(self, command: Sequence[str], listen: Listen, name: str) -> None:
        self.finished: dict[str, Any] = {}
        self._command, self._listen, self._name = list(command), listen, name
        self._complaints: deque[str] = deque(maxlen=5)
        self._waiting: list[tuple[Callable[[dict[str, Any]], bool], asyncio.Future[Any]]] = []
        self._process: Process
        self._reading: asyncio.Task[None]

    @classmethod
    def migrate(cls, words: Sequence[str], listen: Listen, name: str) -> Self:
        """A ``migrate`` command with ``--json``, of the same installation as this process."""
        usual = ["--json", "--config", os.devnull]
        return cls([sys.executable, "-m", "vmferry", *words, *usual], listen, name)

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
            limit=_LINE,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            await asyncio.wait({asyncio.ensure_future(self._process.wait())}, timeout=3)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def until(self, is_it: Callable[[dict[str, Any]], bool], timeout: float) -> Any:
        """Wait for an object that ``is_it``.

        Raises:
            ChildFailed: the process ended, or said no such thing within ``timeout`` seconds.

        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((is_it, future))
        if self._reading.done():
            self._give_up()
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise ChildFailed(f"{self._name} is silent for {timeout:g} s{self._said()}") from None

    async def done(self) -> int:
        """Wait until the process has ended and all it said was heard; returns its exit code."""
        await asyncio.wait({self._reading})
        return await self._process.wait()

    async def succeeded(self) -> None:
        """Wait for the end; raises ``ChildFailed`` if it was not a good one."""
        code = await self.done()
        if code:
            raise ChildFailed(f"{self._name} ended with code {code}{self._said()}")

    def _said(self) -> str:
        return f": {self._complaints[-1]}" if self._complaints else ""

    async def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            await asyncio.gather(
                self._objects(self._process.stdout), self._errors(self._process.stderr)
            )
        finally:
            self._give_up()

    def _give_up(self) -> None:
        for _, future in self._waiting:
            if not future.done():
                text = f"{self._name} ended too early{self._said()}"
                future.set_exception(ChildFailed(text))

    async def _objects(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            with contextlib.suppress(ValueError):
                self._heard(json.loads(line))

    def _heard(self, event: dict[str, Any]) -> None:
        if event.get("event") == "finished":
            self.finished = event
        self._listen(event)
        for is_it, future in self._waiting:
            if not future.done() and is_it(event):
                future.set_result(event)

    async def _errors(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self._complaints.append(line.decode(errors="replace").rstrip())
