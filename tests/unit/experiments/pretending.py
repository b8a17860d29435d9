"""Runs that nobody does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable

from vmferry.experiments.definition import Definition
from vmferry.experiments.executors import Executor
from vmferry.experiments.executors.base import Begin
from vmferry.experiments.matrix import Run
from vmferry.experiments.results import PhaseTime, Result, Round, Series

Describe = Callable[[str], Definition]


def made_up(run: Run, **changes: object) -> Result:
    """A result such as a migration has; the total is 1 s and the number of the repetition."""
    result = Result(
        outcome="done",
        begun=1000.0,
        figures={
            "total": 1.0 + run.repetition,
            "downtime_guest": 0.1,
            "sent": 1 << 20,
            "pending": run.spec.parameters.block_size,
        },
        phases=[
            PhaseTime(role="source", name="push-disk", begin=0.1, seconds=0.6),
            PhaseTime(role="source", name="stop", begin=0.7, seconds=0.1),
            PhaseTime(role="source", name="pull", begin=0.8, seconds=0.2),
        ],
        rounds=[Round(number=0, scanned=10, sent=8, zeroes=2, seconds=0.5, dirty=5, end=0.6)],
        series={
            "moved": Series(times=[0.1, 0.5, 0.9], values=[0.0, 500.0, 900.0]),
            "writes": Series(times=[-0.5, 0.5, 1.5], values=[1.0, 50.0, 90.0]),
            "busy": Series(times=[-0.5, 0.5, 1.5], values=[0.0, 0.1, 0.3]),
        },
    )
    for name, value in changes.items():
        setattr(result, name, value)
    return result


class Pretender(Executor):
    """Gives made-up results; ends after ``stop`` of them as if interrupted."""

    def __init__(self, stop: int | None = None, result: Callable[[Run], Result] = made_up) -> None:
        self.stop, self.result = stop, result
        self.done: list[Run] = []

    async def results(
        self, runs: Iterable[Run], begin: Begin
    ) -> AsyncGenerator[tuple[Run, Result], None]:
        for number, run in enumerate(runs):
            begin(run, "here")
            if number == self.stop:
                raise KeyboardInterrupt
            self.done.append(run)
            yield run, self.result(run)
