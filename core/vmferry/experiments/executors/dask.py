"""Runs by the workers of a Dask cluster that is there already.

Only this process writes to the database, so a run that a cluster does twice counts once. A worker
does one run at a time: two on one machine would measure each other. A worker that dies has its run
done by another; what was left on its machine is removed by the next run there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import msgspec

from vmferry.errors import InputError
from vmferry.experiments.executors.base import Begin, Executor, perform
from vmferry.experiments.extras import need
from vmferry.experiments.leftovers import remove_abandoned
from vmferry.experiments.matrix import Run
from vmferry.experiments.results import Result, RunSpec

__all__ = ["DaskExecutor"]

_CONNECT = "30s"
_RETRIES = 2
_alone = threading.Lock()


class DaskExecutor(Executor):
    """Workers of the cluster whose scheduler is at ``address``."""

    def __init__(self, address: str) -> None:
        self._distributed = need("distributed", "distributed", "--executor dask")
        self._address = address

    async def results(
        self, runs: Iterable[Run], begin: Begin
    ) -> AsyncGenerator[tuple[Run, Result], None]:
        """As many at once as there are workers; raises ``InputError`` if there is no cluster."""
        client = await self._connect()
        try:
            waiting = iter(runs)
            under_way: dict[Any, Run] = {}
            while self._fill(client, waiting, under_way, begin):
                done, _ = await self._distributed.wait(
                    list(under_way), return_when="FIRST_COMPLETED"
                )
                for future in done:
                    yield under_way.pop(future), await _result(future)
        finally:
            await client.close()

    async def _connect(self) -> Any:
        try:
            return await self._distributed.Client(
                self._address, asynchronous=True, timeout=_CONNECT
            )
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(f"no Dask scheduler at {self._address}: {error}") from error

    def _fill(self, client: Any, waiting: Any, under_way: dict[Any, Run], begin: Begin) -> bool:
        """Hand out a run to each worker that has none; whether any is under way."""
        while len(under_way) < max(1, len(client.scheduler_info(n_workers=-1)["workers"])):
            run = next(waiting, None)
            if run is None:
                break
            begin(run, self._address)
            data = msgspec.msgpack.encode(run.spec)
            future = client.submit(work, data, pure=False, retries=_RETRIES)
            under_way[future] = run
        return bool(under_way)


async def _result(future: Any) -> Result:
    """What the worker sent; a failed run if the cluster could not do it."""
    try:
        return msgspec.msgpack.decode(await future.result(), type=Result)
    except Exception as error:
        return Result(error=f"the cluster lost it: {type(error).__name__}: {error}")


def work(data: bytes) -> bytes:
    """Do one run in a worker's process."""
    spec = msgspec.msgpack.decode(data, type=RunSpec)
    with _alone:
        remove_abandoned(spec.folder)
        return msgspec.msgpack.encode(asyncio.run(perform(spec)))
