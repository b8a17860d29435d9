"""A sweep does what is left, stores each run as it ends, and can be stopped at any moment."""

from __future__ import annotations

import pytest
from pretending import Describe, Pretender, made_up

from vmferry.experiments.backends import base
from vmferry.experiments.definition import Definition
from vmferry.experiments.executors.base import perform
from vmferry.experiments.matrix import Run, make_cells, order
from vmferry.experiments.planning import estimate
from vmferry.experiments.records import RunRow, load_runs, open_database
from vmferry.experiments.results import Result
from vmferry.experiments.sweep import Sweep, Tally

MATRIX = "[experiment]\nrepetitions = 3\n[matrix]\nblock_size = [4096, 8192]\n"


def nobody(run: Run, result: Result | None, tally: Tally) -> None:
    """Sees nothing."""


def rows(definition: Definition) -> list[RunRow]:
    with open_database(definition.database) as database:
        return load_runs(database)


async def test_all_is_done_and_nothing_twice(describe: Describe) -> None:
    definition = describe(MATRIX)
    tally = await Sweep(definition, Pretender(), nobody).run()
    assert (tally.total, tally.done, tally.failed, tally.left) == (6, 6, 0, 0)
    again = Pretender()
    tally = await Sweep(definition, again, nobody).run()
    assert (again.done, tally.before) == ([], 6)
    assert len(rows(definition)) == 6


async def test_a_sweep_that_is_stopped_goes_on_where_it_was(describe: Describe) -> None:
    definition = describe(MATRIX)
    first = Pretender(stop=2)
    with pytest.raises(KeyboardInterrupt):
        await Sweep(definition, first, nobody).run()
    assert [row.outcome for row in rows(definition)] == ["done", "done", "interrupted"]
    second = Pretender()
    await Sweep(definition, second, nobody).run()
    done = [(run.cell.spec.cell, run.repetition) for run in first.done + second.done]
    wanted = order(definition, make_cells(definition))
    assert done == [(run.cell.spec.cell, run.repetition) for run in wanted]
    assert [row.attempt for row in rows(definition)] == [0, 0, 0, 1, 0, 0, 0]


async def test_a_run_whose_sweep_was_killed_is_done_anew(describe: Describe) -> None:
    definition = describe(MATRIX)
    runs = order(definition, make_cells(definition))
    with open_database(definition.database, create=True) as database:
        database.begin(database.experiment(definition), runs[0])
    await Sweep(definition, Pretender(), nobody).run()
    assert [row.outcome for row in rows(definition)] == ["interrupted", *["done"] * 6]


async def test_a_failure_is_a_result_and_tried_again_only_if_asked(describe: Describe) -> None:
    definition = describe(MATRIX)

    def fail_large(run: Run) -> Result:
        large = run.spec.parameters.block_size == 8192
        return made_up(run, outcome="failed", error="too large") if large else made_up(run)

    tally = await Sweep(definition, Pretender(result=fail_large), nobody).run()
    assert (tally.done, tally.failed) == (3, 3)
    assert (await Sweep(definition, Pretender(), nobody).run()).before == 6
    again = Pretender()
    tally = await Sweep(definition, again, nobody, retry_failed=True).run()
    assert (len(again.done), tally.done) == (3, 3)
    outcomes = [row.outcome for row in rows(definition)]
    assert (outcomes.count("done"), outcomes.count("failed")) == (6, 3)


async def test_more_repetitions_and_values_are_added_to_what_was_done(describe: Describe) -> None:
    await Sweep(describe(MATRIX), Pretender(), nobody).run()
    more = Pretender()
    wider = MATRIX.replace("= 3", "= 4").replace("8192", "8192, 16384")
    await Sweep(describe(wider), more, nobody).run()
    assert len(more.done) == 2 + 4


async def test_what_was_noted_of_the_plan_is_kept_with_its_runs(describe: Describe) -> None:
    definition = describe("[experiment]\nrepetitions = 1\n[matrix]\nmethod = ['vmferry', 'cold']\n")
    (note,) = make_cells(definition)[0].notes

    def noting(run: Run) -> Result:
        return made_up(run, notes=["of the run", *run.cell.notes])

    await Sweep(definition, Pretender(), nobody).run()
    again = describe(definition.text.replace("'cold'", "'cold']\nblock_size = [8192"))
    await Sweep(again, Pretender(result=noting), nobody).run()
    found = {row.parameters["block_size"]: row.notes for row in rows(definition)}
    assert found == {65536: [note], 8192: ["of the run", note], None: []}


async def test_the_observer_hears_of_beginnings_and_ends(describe: Describe) -> None:
    heard: list[tuple[int, bool, int]] = []

    def hear(run: Run, result: Result | None, tally: Tally) -> None:
        heard.append((run.position, result is not None, tally.left))

    await Sweep(describe(MATRIX), Pretender(), hear).run()
    assert heard[:3] == [(0, False, 6), (0, True, 5), (1, False, 5)]


async def test_the_estimate_is_what_earlier_runs_took(describe: Describe) -> None:
    definition = describe(MATRIX)
    cells = make_cells(definition)
    runs = order(definition, cells)
    reckoned = estimate(cells, runs, None)
    assert reckoned.known == 0
    assert reckoned.seconds > 6
    await Sweep(definition, Pretender(), nobody).run()
    with open_database(definition.database) as database:
        found = estimate(cells, runs, database)
    assert found.known == 6
    assert 0 <= found.seconds < 6


class Breaking(base.Backend):
    name, summary = "breaking", ""

    def check(self, spec: object) -> tuple[str, ...]:
        return ()

    def estimate(self, spec: object) -> float:
        return 0.0

    async def run(self, spec: object, result: Result) -> None:
        result.figures["sent"] = 5
        raise ExceptionGroup("several", [ValueError("it broke")])


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmferry.experiments.executors.base.backend", lambda name: Breaking())


@pytest.mark.usefixtures("breaking")
async def test_what_breaks_is_in_the_result_with_what_was_measured(describe: Describe) -> None:
    (cell,) = make_cells(describe("[matrix]\n"))
    result = await perform(cell.spec)
    assert (result.outcome, result.figures) == ("failed", {"sent": 5})
    assert "it broke" in result.error
