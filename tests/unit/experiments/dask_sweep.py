"""A sweep on a cluster of two worker processes, one of which is killed: ``dask_sweep.py FILE``."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import distributed

from vmferry.experiments.definition import read_definition
from vmferry.experiments.executors.dask import DaskExecutor
from vmferry.experiments.matrix import Run
from vmferry.experiments.results import Result
from vmferry.experiments.sweep import Sweep, Tally


async def main(file: Path) -> None:
    async with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, asynchronous=True, dashboard_address=None
    ) as cluster:
        async with distributed.Client(cluster, asynchronous=True) as client:
            pids = list((await client.run(os.getpid)).values())
        killed: list[int] = []

        def observe(run: Run, result: Result | None, tally: Tally) -> None:
            if tally.done == 2 and result is None and not killed:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

        executor = DaskExecutor(cluster.scheduler_address)
        tally = await Sweep(read_definition(file), executor, observe).run()
        print("killed", len(killed), "done", tally.done, "failed", tally.failed)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
