"""``migrate`` in a process that kills itself at one step: ``kill_at.py EDGE STEP ARGUMENTS``.

STEP is the name of a message that is sent, or a write to the journal as the simulation names them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from vmferry.cli import main
from vmferry.engine.journal_sqlite import SqliteJournal
from vmferry.simulation.journal import describe, writes
from vmferry.wire.link import Link

_ON_ITS_WAY = 0.2
"""Seconds that a message has to leave the process."""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _watch_messages(edge: str, step: str) -> None:
    send = Link.send

    async def sends(link: Link, message: Any, payload: Any = b"") -> None:
        due = type(message).__name__ == step
        if due and edge == "before":
            _die()
        await send(link, message, payload)
        if due:
            await asyncio.sleep(_ON_ITS_WAY)
            _die()

    Link.send = sends  # type: ignore[method-assign]


def _watch_journal(edge: str, step: str) -> None:
    def watched(name: str, method: Any) -> Any:
        async def write(journal: SqliteJournal, *args: Any, **fields: Any) -> Any:
            due = describe(name, args, fields) == step
            if due and edge == "before":
                _die()
            written = await method(journal, *args, **fields)
            if due:
                _die()
            return written

        return write

    for name in writes():
        setattr(SqliteJournal, name, watched(name, getattr(SqliteJournal, name)))


if __name__ == "__main__":
    _, edge, step, *arguments = sys.argv
    _watch_messages(edge, step)
    _watch_journal(edge, step)
    sys.exit(main(arguments))
