"""The control sockets: ``migrate set`` and ``cancel`` talk to ``migrate run``, others to the agent.

One JSON object per line in each direction, over ``STATE/JOB.sock`` or ``STATE/agents/PID.sock``
(mode 0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

from vmferry.api.hooks import Summary
from vmferry.engine.throttle import Throttle
from vmferry.errors import InputError

__all__ = [
    "Answer",
    "Job",
    "answering",
    "ask",
    "ask_at",
    "controlled",
    "running_jobs",
    "stale_sockets",
]

_MOST = 64 * 1024


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator wants of a running migration.

    Attributes:
        bandwidth: bytes per second, 0 for no limit; ``None`` leaves it.
        switch: end PUSH's rounds now.
        cancel: give the migration up, unless it is committed.

    """

    bandwidth: Annotated[int, msgspec.Meta(ge=0)] | None = None
    switch: bool = False
    cancel: bool = False


class Job(Protocol):
    """A migration at its source, new or resumed; see ``SourceJob``."""

    job: str
    throttle: Throttle

    @property
    def committed(self) -> bool:
        """Whether the guest belongs to the destination."""

    @property
    def owner(self) -> str:
        """Where the guest is."""

    def switch_now(self) -> None:
        """End PUSH's rounds as soon as may be."""

    async def run(self) -> Summary:
        """All of it."""


Answer = Callable[[bytes], Awaitable[dict[str, Any]]]
"""Answers one line of JSON."""


@asynccontextmanager
async def answering(path: Path, answer: Answer) -> AsyncIterator[None]:
    """Listen on a control socket while inside; leaves none behind."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError):
            writer.write(json.dumps(await answer(await reader.readline())).encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path, limit=_MOST)
    os.chmod(path, 0o600)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@asynccontextmanager
async def controlled(job: Job, state: Path) -> AsyncIterator[None]:
    """Be the one that works on a job, and listen for wishes while inside.

    Raises:
        InputError: another command works on it.

    """

    async def answer(line: bytes) -> dict[str, Any]:
        return _fulfil(job, line)

    with _alone(job.job, state):
        async with answering(state / f"{job.job}.sock", answer):
            yield


@contextlib.contextmanager
def _alone(job: str, state: Path) -> Iterator[None]:
    path = state / f"{job}.lock"
    try:
        descriptor = _locked(path)
    except BlockingIOError:
        raise InputError(f"another command works on job {job}; see `migrate status`") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    """The file of that name, locked. One that was removed before it could be locked is another."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _fulfil(job: Job, line: bytes) -> dict[str, Any]:
    try:
        wish = msgspec.json.decode(line, type=Wish)
    except ValueError as error:
        return {"error": str(error)}
    if wish.bandwidth is not None:
        job.throttle.set(wish.bandwidth)
    if wish.switch:
        job.switch_now()
    if wish.cancel and not job.committed:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
    return {"job": job.job, "bandwidth": job.throttle.rate, "committed": job.committed}


def running_jobs(state: Path) -> list[str]:
    """Jobs of this host whose command listens on its control socket."""
    return sorted(path.stem for path in state.glob("*.sock") if _listens(path))


def stale_sockets(state: Path) -> list[Path]:
    """Control sockets on which nobody listens any more."""
    sockets = [*state.glob("*.sock"), *state.glob("agents/*.sock")]
    return sorted(path for path in sockets if not _listens(path))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True


async def ask(state: Path, job: str, wish: dict[str, Any]) -> dict[str, Any]:
    """Send a wish to a running job; returns its answer.

    Raises:
        InputError: no such job runs here.

    """
    try:
        if not job.isalnum():
            raise FileNotFoundError
        return await ask_at(state / f"{job}.sock", wish)
    except (FileNotFoundError, ConnectionRefusedError):
        known = ", ".join(running_jobs(state)) or "none"
        raise InputError(f"no migration {job!r} runs here; running: {known}") from None


async def ask_at(path: Path, wish: dict[str, Any]) -> dict[str, Any]:
    """Send a wish to whoever listens at ``path``; raises ``OSError`` if nobody does."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(json.dumps(wish).encode() + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise ConnectionRefusedError(f"{path}: no answer")
    answer: dict[str, Any] = json.loads(line)
    return answer
