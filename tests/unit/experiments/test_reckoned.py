"""What is not real: the model's arithmetic, and the engine on virtual time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from pretending import Describe

from vmferry.api import Load
from vmferry.errors import InputError
from vmferry.experiments.backends import backend
from vmferry.experiments.backends.assumptions import Assumptions
from vmferry.experiments.backends.dirtying import Dirtying, distinct
from vmferry.experiments.executors import perform
from vmferry.experiments.matrix import make_cells
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import Result, RunSpec
from vmferry.experiments.workloads import WORKLOADS
from vmferry.units import GIB, MIB, TIB

GIGABIT = 125_000_000


async def reckon(workload: str | Load = "web", **values: Any) -> Result:
    load = WORKLOADS[workload] if isinstance(workload, str) else workload
    usual = {"hypervisor": "model", "disk_size": TIB, "bandwidth": GIGABIT} | values
    return await perform(RunSpec(parameters=Parameters(**usual), load=load))


async def test_a_full_copy_takes_what_the_link_takes() -> None:
    result = await reckon("idle", disk_size=64 * TIB, bandwidth=100 * GIGABIT)
    assert result.outcome == "done"
    limited_by_host = 64 * TIB / 1e9
    assert result.figures["total"] == pytest.approx(limited_by_host, rel=0.01)
    result = await reckon("idle")
    assert result.figures["total"] == pytest.approx(TIB / GIGABIT, rel=0.01)


async def test_downtime_depends_neither_on_the_disk_nor_on_the_writing() -> None:
    downtimes = [
        (await reckon(load, disk_size=size)).figures["downtime_guest"] or 0.0
        for load in ("web", "diabolical")
        for size in (TIB, 64 * TIB)
    ]
    assert max(downtimes) < 1
    cold = await reckon(method="cold")
    assert (cold.figures["downtime_guest"] or 0) > 8000


async def test_what_cannot_converge_is_a_failure_without_pull_only() -> None:
    assert (await reckon("diabolical", method="converge-first")).outcome == "failed"
    ours = await reckon("diabolical")
    assert ours.outcome == "done"
    assert (ours.figures["pending"] or 0) > GIB


async def test_smaller_blocks_leave_less_to_pull_and_larger_maps() -> None:
    small = await reckon(block_size=4096)
    large = await reckon(block_size=1 << 20)
    assert (small.figures["pending"] or 0) < (large.figures["pending"] or 0)
    assert small.rounds[0].dirty < large.rounds[0].dirty


async def test_loss_and_limit_slow_it_down() -> None:
    plain = (await reckon()).figures["total"] or 0.0
    lossy = (await reckon(loss=0.001, latency=0.01)).figures["total"] or 0.0
    limited = (await reckon("idle", limit=10 * MIB)).figures["total"] or 0.0
    assert lossy > 2 * plain
    assert limited == pytest.approx(TIB / (10 * MIB), rel=0.01)


def test_distinct_places_are_those_of_drawing_at_random() -> None:
    import numpy as np

    random = np.random.default_rng(1)
    for marks, places in ((100, 1000), (5000, 1000), (10, 10)):
        drawn = [len(set(random.integers(0, places, marks).tolist())) for _ in range(200)]
        assert distinct(marks, places) == pytest.approx(np.mean(drawn), rel=0.05)


@pytest.mark.parametrize("pattern", ["sequential", "random", "hotspot"])
def test_a_guest_never_dirties_more_than_it_uses(pattern: str) -> None:
    load = msgspec.structs.replace(WORKLOADS["diabolical"], pattern=pattern, span=0.5)
    spec = RunSpec(parameters=Parameters(disk_size=GIB), load=load)
    dirtying = Dirtying.of(spec, Assumptions())
    found = [dirtying.after(seconds) for seconds in (0, 0.1, 1, 10, 1000)]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] <= GIB / 2 * 1.001


async def simulate(load: str, **values: Any) -> Result:
    usual = {"hypervisor": "simulation", "disk_size": 2 * MIB, "memory": MIB} | values
    spec = RunSpec(parameters=Parameters(**usual), load=WORKLOADS[load], before=0.1, seed=3)
    return await perform(spec)


async def test_the_engine_runs_on_virtual_time() -> None:
    slow = {"bandwidth": MIB, "block_size": 4096, "compression": "none"}
    result = await simulate("web", **slow)
    assert result.outcome == "done", result.error
    assert (result.figures["total"] or 0) > 2
    assert result.rounds[0].scanned == 2 * MIB
    assert {one.role for one in result.phases} == {"source", "destination"}
    assert (await simulate("web", **slow)).figures == result.figures


async def test_disks_and_memory_go_compressed_or_not() -> None:
    """What is simulated shrinks to next to nothing."""
    seconds = {}
    for compression in ("none", "zstd"):
        result = await simulate("web", bandwidth=MIB, compression=compression)
        assert result.outcome == "done", result.error
        times = {one.name: one.seconds for one in result.phases if one.role == "source"}
        seconds[compression] = times["push-disk"], times["push-memory"]
    for plain, packed in zip(seconds["none"], seconds["zstd"], strict=True):
        assert packed < plain / 10


REFUSED = {
    "hypervisor = 'simulation'\ndisk_size = '1GiB'": ("64 MiB", "'model'"),
    "hypervisor = 'simulation'\nloss = 0.1": ("loss", "loses nothing"),
    "hypervisor = 'simulation'\ntransport = 'zeromq'": ("transport", "simulated"),
    "hypervisor = 'model'\nmethod = 'qemu-mirror'": ("'qemu-mirror'", "converge-first"),
    "hypervisor = 'model'\n[model]\nstopp = 3": ("stopp", "stop"),
}


@pytest.mark.parametrize("axes", REFUSED)
def test_what_cannot_be_reckoned_is_refused(describe: Describe, axes: str) -> None:
    with pytest.raises(InputError) as refused:
        make_cells(describe(f"[matrix]\n{axes}\n"))
    for word in REFUSED[axes]:
        assert word in str(refused.value)


def test_what_is_not_real_says_so() -> None:
    assert not backend("model").real
    assert not backend("simulation").real
    assert backend("process").real


def test_a_qemu_guest_says_what_it_cannot_do(describe: Describe) -> None:
    (cell,) = make_cells(describe("[matrix]\nhypervisor = 'qemu'\nworkload = 'video'\n"))
    assert "4 KiB" in cell.notes[0]
    with pytest.raises(InputError, match="memory"):
        make_cells(describe("[matrix]\nhypervisor = 'qemu'\nmemory = '8MiB'\n"))
    methods = "hypervisor = 'qemu'\nmethod = ['vmferry', 'qemu-mirror']\n"
    assert len(make_cells(describe(f"[matrix]\n{methods}block_size = [4096, 8192]"))) == 3
