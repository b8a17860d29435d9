"""Exports of disks to guests, which wait when an export is gone or not there yet."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from vmferry.api.volume import BlockIO, Geometry
from vmferry.errors import VmferryError
from vmferry.simulation.process import ProcessDied, SimProcess
from vmferry.simulation.trace import Trace

__all__ = ["ExportClient", "SimExporter", "SimExports"]

_GRACE = 30.0
"""Seconds in which a request has to be answered once its export is withdrawn, as in real ones."""


class _Export:
    """A disk while it is served."""

    def __init__(self, disk: BlockIO) -> None:
        self.disk = disk
        self.gone = False
        self.calls: dict[asyncio.Task[None], None] = {}
        self.quiet = asyncio.Event()

    def vanish(self) -> None:
        """Leave every request without an answer."""
        self.gone = True
        for task in list(self.calls):
            task.cancel()

    def answered(self, task: asyncio.Task[None]) -> None:
        """Count a request as done."""
        del self.calls[task]
        if not self.calls:
            self.quiet.set()


class SimExports:
    """All exports of all hosts, by URL."""

    def __init__(self, trace: Trace) -> None:
        self._served: dict[str, _Export] = {}
        self._news = asyncio.Event()
        self._trace = trace

    def put(self, url: str, disk: BlockIO) -> None:
        """Serve ``disk`` at ``url``."""
        self._trace.add("expose", url)
        self._served[url] = _Export(disk)
        self._news.set()

    def take(self, url: str) -> _Export | None:
        """Serve ``url`` no more."""
        self._trace.add("withdraw", url)
        return self._served.pop(url, None)

    def urls(self) -> list[str]:
        """All that is served."""
        return list(self._served)

    async def find(self, url: str) -> _Export:
        """The export, as soon as there is one."""
        while url not in self._served:
            self._news.clear()
            await self._news.wait()
        return self._served[url]


class SimExporter:
    """Exports on behalf of one process; a URL names host and export."""

    def __init__(self, exports: SimExports, process: SimProcess) -> None:
        self._exports, self._process = exports, process
        self._urls: list[str] = []
        process.at_death(self._vanish)

    async def expose(self, name: str, disk: BlockIO) -> str:
        """Serve ``disk``."""
        self._process.check()
        url = f"sim://{self._process.host}/{name}"
        self._exports.put(url, disk)
        self._urls.append(url)
        await asyncio.sleep(0)
        return url

    async def withdraw(self, url: str) -> None:
        """Answer what is under way, then stop serving; drop what waits longer than it may."""
        self._process.check()
        if url not in self._urls:
            return
        self._urls.remove(url)
        export = self._exports.take(url)
        try:
            async with asyncio.timeout(_GRACE):
                while export and export.calls:
                    export.quiet.clear()
                    await export.quiet.wait()
        except TimeoutError:
            assert export is not None
            export.vanish()

    def _vanish(self) -> None:
        for url in self._urls:
            export = self._exports.take(url)
            if export:
                export.vanish()


class ExportClient(BlockIO):
    """A disk behind a URL, as a guest's backend sees it."""

    def __init__(self, exports: SimExports, url: str, geometry: Geometry) -> None:
        self.url = url
        self._exports, self._geometry = exports, geometry

    @property
    def geometry(self) -> Geometry:
        """As announced."""
        return self._geometry

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read."""
        await self._call(lambda disk: disk.read_into(offset, buffer))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write."""
        await self._call(lambda disk: disk.write(offset, data))

    async def flush(self) -> None:
        """Flush."""
        await self._call(lambda disk: disk.flush())

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Zero."""
        await self._call(lambda disk: disk.write_zeroes(offset, length, unmap=unmap))

    async def discard(self, offset: int, length: int) -> None:
        """Discard."""
        await self._call(lambda disk: disk.discard(offset, length))

    async def _call(self, request: Callable[[BlockIO], Coroutine[Any, Any, None]]) -> None:
        """Have the export do it; again from the start with the next one when it goes away."""
        while True:
            export = await self._exports.find(self.url)
            task = asyncio.get_running_loop().create_task(request(export.disk))
            export.calls[task] = None
            task.add_done_callback(export.answered)
            if await _answer(task, export):
                return


async def _answer(task: Awaitable[None], export: _Export) -> bool:
    try:
        await task
    except ProcessDied:
        return False
    except VmferryError as error:  # a server has no other words for it
        raise OSError(errno.EIO, str(error)) from error
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if not export.gone or (current and current.cancelling()):
            raise
        return False
    return True
