"""A sweep: what of an experiment is still to do is done, and each run stored as it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from vmferry.experiments.definition import Definition
from vmferry.experiments.executors import Executor
from vmferry.experiments.leftovers import remove_abandoned
from vmferry.experiments.matrix import Run, make_cells, order
from vmferry.experiments.records.database import Database, open_database, sole_writer
from vmferry.experiments.results import Result

__all__ = ["Sweep", "Tally", "remaining"]

_SETTLED = ("done", "failed")


class Tally(msgspec.Struct, kw_only=True):
    """How far a sweep is; seconds are of this session's runs."""

    total: int
    before: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """Runs still to do."""
        return self.total - self.before - self.done - self.failed

    @property
    def eta(self) -> float | None:
        """Seconds that the rest will take at the present rate; ``None`` before the first run."""
        ended = self.done + self.failed
        return self.left * self.seconds / ended if ended else None


Observer = Callable[[Run, Result | None, Tally], None]
"""Told when a run begins, without a result, and when it has ended."""


def remaining(database: Database, runs: list[Run], *, retry_failed: bool = False) -> list[Run]:
    """The runs that have not ended yet; a failed one has, unless failures are to be retried."""
    settled = ("done",) if retry_failed else _SETTLED
    outcomes = database.outcomes()

    def is_open(run: Run) -> bool:
        attempts = outcomes.get((run.cell.spec.cell, run.repetition), [])
        return not any(outcome in settled for outcome in attempts)

    return [run for run in runs if is_open(run)]


class Sweep:
    """Runs an experiment into its database.

    Args:
        definition: the experiment.
        executor: has the runs done.
        observe: is told of each.
        folder: where runs make their folders; ``""`` is the system's temporary one.
        retry_failed: whether failed runs are tried again.

    """

    def __init__(
        self,
        definition: Definition,
        executor: Executor,
        observe: Observer,
        *,
        folder: str = "",
        retry_failed: bool = False,
    ) -> None:
        self.definition, self.executor, self.observe = definition, executor, observe
        self.folder, self.retry_failed = folder, retry_failed
        self.cells = make_cells(definition)
        self._rows: dict[int, int] = {}

    async def run(self) -> Tally:
        """Do what is left. Cancelled, it ends the run under way and notes that it was interrupted.

        Raises:
            InputError: the database cannot be used, or somebody else runs into it.

        """
        definition = self.definition
        with (
            open_database(definition.database, create=True) as database,
            sole_writer(definition.database),
        ):
            await asyncio.to_thread(remove_abandoned, self.folder)
            database.close_abandoned()
            return await self._do(database, database.experiment(definition))

    async def _do(self, database: Database, experiment: int) -> Tally:
        runs = order(self.definition, self.cells)
        left = remaining(database, runs, retry_failed=self.retry_failed)
        tally = Tally(total=len(runs), before=len(runs) - len(left))

        def begin(run: Run, worker: str) -> None:
            self._rows[run.position] = database.begin(experiment, run, worker)
            self.observe(run, None, tally)

        began = time.monotonic()
        placed = [self._placed(run) for run in left]
        try:
            async with aclosing(self.executor.results(placed, begin)) as results:
                async for run, result in results:
                    result.notes += [one for one in run.cell.notes if one not in result.notes]
                    database.end(self._rows.pop(run.position), result)
                    tally.done += result.outcome == "done"
                    tally.failed += result.outcome == "failed"
                    tally.seconds = time.monotonic() - began
                    self.observe(run, result, tally)
        finally:
            for row in self._rows.values():
                database.end(row, Result(outcome="interrupted", error="the sweep was stopped"))
        return tally

    def _placed(self, run: Run) -> Run:
        spec = msgspec.structs.replace(run.spec, folder=self.folder)
        return msgspec.structs.replace(run, spec=spec)
