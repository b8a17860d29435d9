"""What an executor is, and what it does with one run."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable

from vmferry.experiments.backends import backend
from vmferry.experiments.matrix import Run
from vmferry.experiments.results import Result, RunSpec

__all__ = ["Begin", "Executor", "perform"]

Begin = Callable[[Run, str], None]
"""Told that a run begins, and where."""


class Executor(ABC):
    """Has runs done. Each run that is begun is given back once, or the executor raises."""

    @abstractmethod
    def results(
        self, runs: Iterable[Run], begin: Begin
    ) -> AsyncGenerator[tuple[Run, Result], None]:
        """Do the runs in their order, and give each back with its result as it ends."""


async def perform(spec: RunSpec) -> Result:
    """Do one run in this process; whatever fails is in the result. Only cancellation is raised."""
    result = Result()
    try:
        async with asyncio.timeout(spec.timeout):
            await backend(spec.parameters.hypervisor).run(spec, result)
        result.outcome = "done"
    except TimeoutError:
        result.error = f"the run took longer than {spec.timeout:g} s"
    except Exception as error:
        result.error = f"{type(error).__name__}: {_essence(error)}"
    return result


def _essence(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
