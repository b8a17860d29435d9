"""The journal of a simulated host as one process uses it: it takes time and may fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from vmferry.engine.journal import Journal, MemoryJournal
from vmferry.errors import VmferryError
from vmferry.simulation.process import SimProcess
from vmferry.simulation.steps import Edge, Step, Steps

__all__ = ["SimJournal", "describe", "writes"]

_READS = frozenset({"load", "jobs", "epoch", "scratch", "close"})
"""Every other method of the contract writes."""
_LONGEST = 0.001
"""Longest time in seconds that a write takes."""


class SimJournal:
    """The engine's ``Journal`` on behalf of one process.

    Args:
        store: what is durable; it outlives the process.
        process: whose journal it is.
        random: decides times, and whether a write that failed or was cancelled was made.
        steps: is told of every write.
        phase: what the source is doing.

    """

    def __init__(
        self,
        store: MemoryJournal,
        process: SimProcess,
        random: Random,
        steps: Steps,
        phase: Callable[[], str],
    ) -> None:
        self._store, self._process, self._random = store, process, random
        self._steps, self._phase = steps, phase

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def read(*args: Any, **fields: Any) -> Any:
            self._process.check()
            return await method(*args, **fields)

        async def write(*args: Any, **fields: Any) -> Any:
            what = describe(name, args, fields)
            step = Step(self._process.host, self._phase(), what)
            return await self._write(step, lambda: method(*args, **fields))

        return read if name in _READS else write

    async def _write(self, step: Step, write: Callable[[], Any]) -> Any:
        self._process.check()
        self._steps.passes(step, Edge.BEFORE)
        self._process.check()
        maybe = self._random.random() < 0.5
        try:
            await asyncio.sleep(self._random.random() * _LONGEST)
        except asyncio.CancelledError:
            if maybe and self._process.alive:
                await write()
            raise
        self._process.check()
        complaint = self._process.trouble.of_journal()
        if maybe or not complaint:
            written = await write()
        if complaint:
            raise VmferryError(f"journal {step.host} cannot be used: {complaint}")
        self._steps.passes(step, Edge.AFTER)
        self._process.check()
        return written


def writes() -> list[str]:
    """The methods of the contract that write."""
    return sorted(name for name in vars(Journal) if name[0] != "_" and name not in _READS)


def describe(method: str, args: tuple[Any, ...], fields: dict[str, Any]) -> str:
    """``journal.update(committed=True)``: what is told apart from other writes."""
    said = [str(value) for value in args[1:] if isinstance(value, str) and method == "decide"]
    said += [f"{name}={value}" for name, value in sorted(fields.items()) if _plain(name, value)]
    return f"journal.{method}({','.join(said)})"


def _plain(name: str, value: object) -> bool:
    return name != "error" and isinstance(value, str | bool)
