"""Products, exclusions, cells that are the same, and the order of runs."""

from __future__ import annotations

import msgspec
import pytest
from pretending import Describe

from vmferry.errors import InputError
from vmferry.experiments.matrix import make_cells, order
from vmferry.experiments.parameters import AXES, Parameters, show_value
from vmferry.experiments.results import MEASURE, RunSpec

MATRIX = """
[experiment]
repetitions = 3
seed = 5
[matrix]
block_size = ["8 sectors", "16 sectors", "32 sectors"]
workload = ["idle", "web"]
[[exclude]]
block_size = ["8 sectors", "16 sectors"]
workload = "web"
"""


def test_axes_are_the_parameters() -> None:
    assert tuple(AXES) == Parameters.__struct_fields__
    assert all(show_value(axis, getattr(Parameters(), axis)) for axis in AXES)
    assert show_value("block_size", None) == "-"


def test_the_product_without_what_is_excluded(describe: Describe) -> None:
    cells = make_cells(describe(MATRIX))
    found = [(c.spec.parameters.block_size, c.spec.parameters.workload) for c in cells]
    assert found == [(4096, "idle"), (8192, "idle"), (16384, "idle"), (16384, "web")]


def test_an_exclusion_knows_the_defaults(describe: Describe) -> None:
    text = "[matrix]\nblock_size = [4096, 8192]\n[[exclude]]\nworkload = 'idle'\nblock_size = 4096"
    assert len(make_cells(describe(text))) == 1


def test_two_products_are_joined_without_repeating_a_cell(describe: Describe) -> None:
    text = "[[matrix]]\nblock_size = [4096, 8192]\n[[matrix]]\nblock_size = [8192, 16384]\n"
    sizes = [cell.spec.parameters.block_size for cell in make_cells(describe(text))]
    assert sizes == [4096, 8192, 16384]


def test_a_baseline_has_one_cell_for_all_that_it_ignores(describe: Describe) -> None:
    text = "[matrix]\nmethod = ['vmferry', 'cold']\nblock_size = [4096, 8192]\n"
    cells = make_cells(describe(text))
    assert [cell.spec.parameters.method for cell in cells] == ["vmferry", "vmferry", "cold"]
    assert cells[2].shown["block_size"] is None
    assert cells[1].shown["block_size"] == 8192


COMPARED = "[matrix]\nmethod = ['vmferry', 'cold']\n"
SIMULATED = "[[matrix]\nhypervisor = 'simulation'\nmemory = 4096\ndisk_size = 4096\n"
WITHOUT = f"{COMPARED}compression = 'none'\n"


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (COMPARED, ["compression is auto for vmferry"]),
        (f"{COMPARED}compression = 'lz4'\n", ["compression is lz4"]),
        (f"{WITHOUT}limit = '8MiB/s'\n", ["a limit of 8.0 MiB/s"]),
        (f"{COMPARED}limit = '8MiB/s'\n", ["compression is auto", "a limit of 8.0 MiB/s"]),
        (WITHOUT, []),
        (COMPARED.replace(", 'cold'", ""), []),
        (f"{COMPARED}hypervisor = 'model'\nlimit = '8MiB/s'\n", []),
        (f"[{COMPARED}{SIMULATED}".replace("[matrix]", "[matrix]]"), ["compression is auto"]),
    ],
)
def test_what_vmferry_has_and_a_baseline_beside_it_lacks_is_noted(
    describe: Describe, text: str, notes: list[str]
) -> None:
    cells = make_cells(describe(text))
    ours, *others = (cell.notes for cell in cells)
    assert len(ours) == len(notes)
    assert all(note in found for note, found in zip(notes, ours, strict=True))
    assert not any(others)


def test_order_is_random_by_repetition_and_the_same_again(describe: Describe) -> None:
    text = MATRIX.replace("web", "video").replace("repetitions = 3", "repetitions = 20")
    definition = describe(text)
    cells = make_cells(definition)
    runs = order(definition, cells)
    blocks = [
        [run.spec.parameters for run in runs if run.repetition == number] for number in range(20)
    ]
    assert [run.repetition for run in runs] == sorted(run.repetition for run in runs)
    assert all(len(set(block)) == len(cells) for block in blocks)
    assert len({tuple(block) for block in blocks}) > 1
    assert runs == order(definition, cells)
    assert len({run.spec.seed for run in runs}) == len(runs)


def test_more_repetitions_leave_the_first_as_they_were(describe: Describe) -> None:
    few = describe(MATRIX)
    cells = make_cells(few)
    many = describe(MATRIX.replace("repetitions = 3", "repetitions = 6"))
    assert order(many, cells)[: 3 * len(cells)] == order(few, cells)


def test_another_seed_is_another_order(describe: Describe) -> None:
    definition = describe(MATRIX)
    cells = make_cells(definition)
    other = describe(MATRIX.replace("seed = 5", "seed = 6"))
    assert [run.cell for run in order(other, cells)] != [
        run.cell for run in order(definition, cells)
    ]


REFUSED = {
    "hypervisor = 'proces'": ("'proces'", "'process'"),
    "workload = 'wbe'": ("'wbe'", "'web'"),
    "policy = 'defualt'": ("'defualt'", "'default'"),
    "method = 'clod'": ("'clod'", "'cold'"),
    "transport = 'tpc'": ("'tpc'", "'tcp'"),
    "transport = 'memory'": ("'memory'", "one machine"),
    "tracker = 'blkback'": ("tracker", "'export'"),
    "volume = 'qcow2'": ("volume", "'raw'"),
    "disk_size = 1000": ("1000", "4096"),
    "disk_size = ['1GiB', 1000]": ("1000", "disk_size"),
    "transport = 'rdma'\nlatency = '1ms'": ("'rdma'", "shaped"),
}


@pytest.mark.parametrize("axes", REFUSED)
def test_what_cannot_be_run_is_refused_with_the_reason(describe: Describe, axes: str) -> None:
    with pytest.raises(InputError) as refused:
        make_cells(describe(f"[matrix]\n{axes}\n"))
    for word in REFUSED[axes]:
        assert word in str(refused.value)


def test_wrong_options_of_a_plugin_are_refused(describe: Describe) -> None:
    with pytest.raises(InputError, match="queue_dept"):
        make_cells(describe("[matrix]\n[plugins.trial.process]\nqueue_dept = 3\n"))


def test_a_matrix_beyond_reason_is_refused(describe: Describe) -> None:
    sizes = [4096 * number for number in range(1, 400)]
    with pytest.raises(InputError, match="159201 cells"):
        make_cells(describe(f"[matrix]\ndisk_size = {sizes}\nmemory = {sizes}\n"))


def test_nothing_left_is_refused(describe: Describe) -> None:
    with pytest.raises(InputError, match="excluded"):
        make_cells(describe("[matrix]\n[[exclude]]\nworkload = 'idle'\n"))


def test_a_cell_is_what_its_names_stand_for_and_no_seed() -> None:
    spec = RunSpec(parameters=Parameters())
    assert msgspec.structs.replace(spec, seed=9, folder="/x", timeout=3.0).cell == spec.cell
    assert msgspec.structs.replace(spec, before=9.0).cell != spec.cell
    assert spec.measure == MEASURE
    assert msgspec.structs.replace(spec, measure=MEASURE - 1).cell != spec.cell
    policy = msgspec.structs.replace(spec.policy, max_rounds=1)
    assert msgspec.structs.replace(spec, policy=policy).cell != spec.cell


def test_identifiers_stay_until_figures_mean_something_else() -> None:
    known = {2: "3ca39d7276c17a25"}
    assert RunSpec(parameters=Parameters()).cell == known[MEASURE]
