"""What the engine is given from outside: it touches no clock, thread, socket or file by itself.

A test gives it simulated ones on a virtual event loop; the command line gives it real ones. Time
is always ``asyncio.get_running_loop().time()``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from vmferry.api.hypervisor import Hypervisor
from vmferry.api.tracker import Tracker
from vmferry.api.volume import BlockIO, VolumeDriver

__all__ = ["Exporter", "InlineWorkers", "Registry", "ThreadWorkers", "Workers"]

T = TypeVar("T")
_STEP_BACK = 5
_LOWEST = 19


class Workers(Protocol):
    """Runs work that would hold up the event loop: digests, compression."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``, computed elsewhere."""


def _yield_to_the_loop() -> None:
    """Bulk work has the lower priority, so that the event loop answers a guest at once.

    Lower than it was: nobody but root may raise it.
    """
    me = threading.get_native_id()
    nice = os.getpriority(os.PRIO_PROCESS, me)
    os.setpriority(os.PRIO_PROCESS, me, min(nice + _STEP_BACK, _LOWEST))


class ThreadWorkers:
    """Workers on a pool of threads, for functions that release the GIL."""

    def __init__(self, threads: int = 4) -> None:
        self._pool = ThreadPoolExecutor(threads, "vmferry-work", initializer=_yield_to_the_loop)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``, computed on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """Wait for what runs and end the threads."""
        self._pool.shutdown()


class InlineWorkers:
    """Workers that compute at once, for a deterministic event loop."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``."""
        return function(*args)


class Exporter(Protocol):
    """Shows a pull disk to a guest."""

    async def expose(self, name: str, disk: BlockIO) -> str:
        """Serve ``disk`` from now on; returns the URL for ``ArrivingDisk.export``."""

    async def withdraw(self, url: str) -> None:
        """Stop serving: requests under way are answered first. May be called twice."""


class Registry(Protocol):
    """Gives plugins by name; options are taken from the user's settings for that plugin."""

    def volume(self, name: str) -> VolumeDriver[Any]:
        """A volume driver. Raises ``PluginNotFound``, ``PluginError`` or ``OptionError``."""

    def tracker(self, name: str) -> Tracker[Any]:
        """A tracker for one disk."""

    def hypervisor(self, name: str) -> Hypervisor[Any]:
        """A hypervisor for one job."""

    def options(self, kind: str, name: str) -> Mapping[str, Any]:
        """The user's settings for that plugin."""
