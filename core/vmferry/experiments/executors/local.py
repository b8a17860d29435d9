"""Runs on this machine, one after the other: two at once would measure each other."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Iterable

from vmferry.experiments.backends import backend
from vmferry.experiments.executors.base import Begin, Executor, perform
from vmferry.experiments.matrix import Run
from vmferry.experiments.results import Result

__all__ = ["LocalExecutor"]


class LocalExecutor(Executor):
    """In this process."""

    async def results(
        self, runs: Iterable[Run], begin: Begin
    ) -> AsyncGenerator[tuple[Run, Result], None]:
        """One after the other.

        Raises ``InputError`` before the first if one cannot be done on this machine.
        """
        runs = list(runs)
        for run in runs:
            backend(run.spec.parameters.hypervisor).ready(run.spec)
        for run in runs:
            begin(run, socket.gethostname())
            yield run, await perform(run.spec)
