"""The agent that logins through ssh share: where it is, whether anybody needs it.

It belongs to one state folder and one set of options. Each login holds a shared lock as long as it
lives; the agent ends only when it gets the same lock for itself, which it keeps to its end. So no
login can meet an agent that is about to leave.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmferry.engine.agent import Agent

__all__ = ["Logins", "alone", "until_idle"]

_LOOK = 1.0


class Logins:
    """Who is logged in to the agent of one socket.

    Args:
        socket: path of the agent's unix socket.

    """

    def __init__(self, socket: str) -> None:
        self._file = os.open(f"{socket}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def enter(self) -> None:
        """Count as logged in until the process ends; waits while an agent is leaving."""
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def none(self) -> bool:
        """True when nobody is logged in; then nobody can log in until ``allow``."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def allow(self) -> None:
        """Let logins in again."""
        fcntl.flock(self._file, fcntl.LOCK_UN)


@contextmanager
def alone(socket: str) -> Iterator[None]:
    """Keep other logins from looking for the agent, and starting it, at the same time."""
    file = os.open(f"{socket}.start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


async def until_idle(agent: Agent, idle: float, logins: Logins | None) -> None:
    """Return when nobody has needed ``agent`` for ``idle`` seconds.

    With ``logins``, nobody can log in any more when this returns.
    """
    loop = asyncio.get_running_loop()
    needed = loop.time()
    while True:
        await asyncio.sleep(min(idle, _LOOK))
        if agent.active or agent.busy or not (logins is None or logins.none()):
            needed = loop.time()
            continue
        if loop.time() - needed >= idle:
            return
        if logins is not None:
            logins.allow()
