"""Which guests there are: every QMP socket that answers, by the name QEMU has for its guest."""

from __future__ import annotations

import asyncio
import glob
import os
from pathlib import Path
from typing import NamedTuple

from vmferry.errors import GuestNotFound, OptionError
from vmferry_support.qmp import Qmp, QmpError

__all__ = ["Monitor", "Place", "find_guest", "list_monitors"]

_GREETING = 3.0
"""Seconds for a monitor to greet when all are asked; one that another program holds does not."""


class Monitor(NamedTuple):
    """A guest's name and its monitor's socket."""

    name: str
    path: str


class Place:
    """Where the sockets of a host's guests are; see the option ``sockets``.

    Raises ``OptionError`` for a pattern without a ``*`` in its last part, or with more than one.
    """

    def __init__(self, sockets: str) -> None:
        path = os.path.abspath(os.path.expanduser(sockets))
        if "*" not in sockets:
            path = os.path.join(path, "*.qmp")
        folder, pattern = os.path.split(path)
        if "*" in folder or pattern.count("*") != 1:
            raise OptionError(f"sockets={sockets!r}: there must be one * , in the last part")
        self.folder, self._pattern = Path(folder), pattern

    def of(self, name: str) -> Path:
        """Where the monitor of a guest is, or would be."""
        return self.folder / self._pattern.replace("*", name)

    def name_of(self, path: str) -> str:
        """What the ``*`` stands for in a path."""
        before, after = self._pattern.split("*")
        base = os.path.basename(path)
        return base[len(before) : len(base) - len(after)]

    def sockets(self) -> list[str]:
        """All that is there, ascending."""
        folder = glob.escape(str(self.folder))
        return sorted(each for each in glob.glob(os.path.join(folder, self._pattern)))


async def list_monitors(place: Place) -> list[Monitor]:
    """The monitors that answer. Others are passed over: their guest ended, or is not for us."""
    found = await asyncio.gather(*(_ask(place, path) for path in place.sockets()))
    return [each for each in found if each is not None]


async def _ask(place: Place, path: str) -> Monitor | None:
    try:
        async with await Qmp.connect(path, timeout=_GREETING) as qmp:
            said = await qmp.execute("query-name", timeout=_GREETING)
            return Monitor(said.get("name") or place.name_of(path), path)
    except QmpError:
        return None


async def find_guest(place: Place, name: str) -> str:
    """The socket of a guest's monitor.

    Raises:
        GuestNotFound: lists those there are.

    """
    monitors = await list_monitors(place)
    for each in monitors:
        if each.name == name:
            return each.path
    raise GuestNotFound(name, [each.name for each in monitors])
