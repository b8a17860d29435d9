"""Medians, intervals and tables."""

from __future__ import annotations

import io
import re

import pytest
from pretending import Describe, Pretender, made_up
from rich.console import Console

from vmferry.experiments.matrix import Run, make_cells
from vmferry.experiments.records import open_database
from vmferry.experiments.report.bootstrap import SPREAD, Estimate, median, ratio
from vmferry.experiments.report.data import Group, Overview, load_overview
from vmferry.experiments.report.plots.phases import phase_names
from vmferry.experiments.report.terminal import terminal_report
from vmferry.experiments.results import PhaseTime, Result
from vmferry.experiments.sweep import Sweep

MATRIX = """
[experiment]
repetitions = 5
[matrix]
method = ["vmferry", "cold"]
block_size = [4096, 8192]
"""


def test_the_interval_holds_the_median_and_narrows() -> None:
    few, many = median([1, 2, 3, 4, 5, 50]), median([1, 2, 3, 4, 5, 50] * 20)
    assert few is not None
    assert many is not None
    assert None not in (few.low, few.high, many.low, many.high)
    assert (few.value, few.count) == (3.5, 6)
    assert 1 <= few.low <= 3.5 <= few.high < 50
    assert many.high - many.low < few.high - few.low
    assert (few.spread, many.spread) == ("95%", "95%")
    assert median([1, 2, 3, 4, 5, 50]) == few


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    import numpy as np

    random = np.random.default_rng(3)
    held = 0
    for _ in range(60):
        found = median(list(random.normal(10, 1, 15)))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 10 <= found.high
    assert 52 <= held <= 60


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_values_have_a_range_and_no_interval(count: int) -> None:
    found = median([10.0, 1.0, 7.0, 3.0, 5.0][:count])
    assert found is not None
    assert (found.low, found.high) == (1.0, 10.0)
    assert found.spread == f"range of {count}"


def test_one_value_has_neither() -> None:
    assert median([]) is None
    assert median([1.5]) == ratio([3.0, 1.0, 1.5], [1.0]) == Estimate(1.5, None, None, 1)


def test_a_ratio_has_an_interval_or_a_range_too() -> None:
    values, base = [10.0, 11, 12], [5, 5.5, 6, 5.4, 5.6, 5.5]
    found = ratio(values, base)
    assert found is not None
    assert [found.value, found.low, found.high] == pytest.approx([2, 10 / 6, 12 / 5])
    assert found.spread == "range of 3"
    found = ratio(values * 2, base)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert 10 / 6 < found.low <= 2 <= found.high < 12 / 5
    assert found.spread == "95%"
    assert ratio([1.0], [0.0]) is None


async def overview_of(describe: Describe, result: object = made_up) -> Overview:
    definition = describe(MATRIX)
    pretender = Pretender(result=result)  # type: ignore[arg-type]
    await Sweep(definition, pretender, lambda *_: None).run()
    with open_database(definition.database) as database:
        return load_overview(database, [cell.spec.cell for cell in make_cells(definition)])


def shown(overview: Overview) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(terminal_report(overview, "trial"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_cells_are_grouped_and_named_by_what_varies(describe: Describe) -> None:
    overview = await overview_of(describe)
    assert overview.varied == ["method", "block_size"]
    labels = [overview.label(group) for group in overview.groups]
    assert labels == ["vmferry, 8 sectors", "vmferry, 16 sectors", "cold"]
    estimate = overview.groups[0].estimate("total")
    assert estimate is not None
    assert (estimate.value, estimate.count) == (3.0, 5)
    pull = overview.groups[0].estimate("phase:pull")
    assert pull is not None
    assert pull.value == pytest.approx(0.2)


def test_phases_are_in_the_order_of_each_run() -> None:
    def group(*names: str) -> Group:
        phases = [PhaseTime(role="source", name=name, begin=0, seconds=1) for name in names]
        return Group(cell="", parameters={}, phases=[phases])

    ours = group("handshake", "push-disk", "push-memory", "push-disk", "stop", "pull")
    mirror, drbd = group("mirror", "migrate", "stop"), group("sync", "promote", "migrate", "part")
    assert phase_names([ours, mirror, drbd]) == [
        *("handshake", "push-disk", "push-memory", "mirror", "sync", "promote", "migrate"),
        *("stop", "pull", "part"),
    ]
    assert phase_names([drbd]) == ["sync", "promote", "migrate", "part"]


async def test_each_baseline_is_compared_with_vmferrys_cells(describe: Describe) -> None:
    overview = await overview_of(describe)
    ((base, ours),) = overview.pairs()
    assert overview.label(base) == "cold"
    assert len(ours) == 2
    text = shown(overview)
    assert "times the baseline's median" in text
    assert f"medians ({SPREAD})" in text
    assert "3.0 s (range of 5: 1.0 s to 5.0 s)" in text
    assert "1.00 (range of 5: 0.20 to 5.00)" in text


async def test_what_a_baseline_does_not_have_is_said_of_vmferrys_runs(describe: Describe) -> None:
    overview = await overview_of(describe)
    text = shown(overview)
    (everywhere,) = re.findall("in all runs: (.*)", text)
    (ours,) = re.findall("in all runs of vmferry: (.*)", text)
    assert {"hypervisor process", "memory 64 MiB"} < set(everywhere.rstrip().split(", "))
    assert {"compression auto", "limit none"} < set(ours.rstrip().split(", "))
    assert "compression" not in everywhere
    alone = Overview(groups=overview.groups[:2], varied=[], fixed=overview.fixed)
    assert list(alone.common()) == ["all runs"]


def test_what_vmferry_does_not_always_have_is_said_of_those_to_which_it_matters() -> None:
    groups = [
        Group(cell=name, parameters={"method": "vmferry", "transport": transport, "memory": 1})
        for name, transport in (("process", "tcp"), ("model", None))
    ]
    overview = Overview(groups=groups, varied=[], fixed={"transport": "tcp", "memory": 1})
    matters = {"transport": "tcp"}
    assert overview.common() == {
        "the runs to which it matters": matters,
        "all runs": {"memory": 1},
    }
    cold = [Group(cell=one.cell, parameters=one.parameters | {"method": "cold"}) for one in groups]
    overview = Overview(groups=cold, varied=[], fixed=matters)
    assert overview.common() == {"the runs to which it matters": matters}


OTHERWISE = {
    "before": 9.0,
    "after": 9.0,
    "load": {"write_rate": 9.0},
    "options": {"trial": {"process": {"queue_depth": 3}}},
    "lab": {"folder": "elsewhere"},
    "model": {"latency": 9.0},
    "measure": 1,
}


@pytest.mark.parametrize("name", OTHERWISE)
async def test_runs_under_other_circumstances_are_not_compared(
    describe: Describe, name: str
) -> None:
    overview = await overview_of(describe)
    one, other, _ = overview.groups
    one.spec[name] = OTHERWISE[name]
    ((_, ours),) = overview.pairs()
    assert ours == [other]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", {"max_rounds": 9}),
        ("options", {"tracker": {"any": {"x": 3}}}),
        ("seed", 9),
        ("folder", "elsewhere"),
        ("timeout", 9.0),
    ],
)
async def test_what_makes_no_difference_to_a_baseline_parts_nothing(
    describe: Describe, name: str, value: object
) -> None:
    overview = await overview_of(describe)
    overview.groups[0].spec[name] = value
    ((base, ours),) = overview.pairs()
    assert len(ours) == 2
    base.parameters["policy"] = overview.groups[1].parameters["policy"]
    ((base, ours),) = overview.pairs()
    assert len(ours) == (1 if name == "policy" else 2), "one that a policy makes a difference to"


async def test_of_two_descriptions_in_one_database_each_has_its_own_baseline(
    describe: Describe,
) -> None:
    for before in ("1s", "2s"):
        definition = describe(MATRIX.replace("[matrix]", f"before = '{before}'\n[matrix]"))
        await Sweep(definition, Pretender(), lambda *_: None).run()
    with open_database(definition.database) as database:
        pairs = load_overview(database).pairs()
    found = [{group.spec["before"] for group in (base, *ours)} for base, ours in pairs]
    assert sorted(found, key=min) == [{1.0}, {2.0}]


async def test_failures_are_shown_and_not_averaged(describe: Describe) -> None:
    def fail_last(run: Run) -> Result:
        last = run.repetition == 4
        return made_up(run, outcome="failed", error="[it] broke") if last else made_up(run)

    overview = await overview_of(describe, fail_last)
    assert all(len(group.runs) == 4 for group in overview.groups)
    text = shown(overview)
    assert "4 + 1 failed" in text
    assert "[it] broke" in text
