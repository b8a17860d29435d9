"""The world finds what is planted in it, and nothing when nothing is."""

import asyncio
import os
import subprocess
import sys

import pytest

from vmferry.simulation.disk import DiskParameters
from vmferry.simulation.loop import run
from vmferry.simulation.temper import HypervisorParameters, Lapse
from vmferry.simulation.toy import Flaw, ferry
from vmferry.simulation.tracker import Mistake, Style, TrackerParameters
from vmferry.simulation.workload import Workload
from vmferry.simulation.world import DESTINATION, World, WorldParameters

LOSS = {"lost", "bad-read"}
BUSY = Workload(think=0.0005, workers=6)
SLOW_DISK = {
    "disk": DiskParameters(write=0.02),
    "far_disk": DiskParameters(),
    "workload": Workload(think=0.0, workers=8, hot=0.0),
}


def simulate(seed, flaw=Flaw.NONE, **parameters):
    async def main():
        small = {"disk_size": 1 << 20, "pages": 64, "workload": BUSY} | parameters
        world = World(seed, WorldParameters(**small))
        await world.boot()
        await asyncio.sleep(0.02)
        await ferry(world, flaw)
        await asyncio.sleep(0.02)
        await world.settle()
        world.check()
        return world

    return run(main(), seed=seed, limit=3600)


def kinds(world):
    return {violation.kind for violation in world.findings.violations}


def found(wanted, flaw=Flaw.NONE, seeds=15, **parameters):
    """Whether some seed shows one of the wanted kinds of violation."""
    return any(kinds(simulate(seed, flaw, **parameters)) & wanted for seed in range(seeds))


TRACKERS = [
    TrackerParameters(),
    TrackerParameters(style=Style.COMPLETION),
    TrackerParameters(style=Style.BARRIER, unit=8192),
    TrackerParameters(capacity=40),
]


@pytest.mark.parametrize("tracker", TRACKERS, ids=lambda tracker: tracker.style)
@pytest.mark.parametrize("reissues", [True, False])
def test_a_right_migration_has_no_violation(tracker, reissues):
    hypervisor = HypervisorParameters(reissues=reissues)
    for seed in range(4):
        world = simulate(seed, tracker=tracker, hypervisor=hypervisor)
        assert not world.findings.violations, world.story()
        assert world.oracles["guest"].running == [DESTINATION]


@pytest.mark.parametrize(
    "flaw",
    [
        Flaw.FORGETS_LAST_HARVEST,
        Flaw.CLEARS_AFTER_READING,
        Flaw.LATE_ARRIVAL_WINS,
        Flaw.PARTIAL_WRITE_CLEARS,
        Flaw.DISCARD_CLEARS,
    ],
)
def test_a_flaw_in_the_migration_loses_writes(flaw):
    discards = Workload(think=0.0005, workers=6, discard=20)
    workload = discards if flaw is Flaw.DISCARD_CLEARS else BUSY
    assert found(LOSS, flaw, workload=workload)


def test_missing_the_drain_loses_writes_that_are_not_issued_again():
    emulated = HypervisorParameters(reissues=False)
    assert found(LOSS, Flaw.NO_DRAIN, hypervisor=emulated, **SLOW_DISK)
    assert not found(LOSS, Flaw.NONE, 4, hypervisor=emulated, **SLOW_DISK)
    assert not found(LOSS, Flaw.NO_DRAIN, 4, **SLOW_DISK)


@pytest.mark.parametrize("mistake", [m for m in Mistake if m is not Mistake.NONE])
def test_a_mistake_in_the_tracker_loses_writes(mistake):
    in_flight = mistake in {Mistake.NO_DRAIN, Mistake.NO_BARRIER}
    tracker = TrackerParameters(
        mistake=mistake,
        capacity=40 if mistake is Mistake.FORGETS_OVERFLOW else 0,
        delay=0.0 if in_flight else 0.005,
    )
    hypervisor = HypervisorParameters(reissues=mistake is not Mistake.NO_DRAIN)
    more = SLOW_DISK if in_flight else {}
    assert found(LOSS, tracker=tracker, hypervisor=hypervisor, **more)


@pytest.mark.parametrize(
    ("lapse", "kind"),
    [
        (Lapse.SKIPS_LAST_PAGES, "memory"),
        (Lapse.STALE_STATE, "record"),
        (Lapse.RUNS_ON, "two-owners"),
        (Lapse.DROPS_OUTSTANDING, "lost"),
    ],
)
def test_a_lapse_of_the_hypervisor_is_found(lapse, kind):
    assert found({kind}, hypervisor=HypervisorParameters(lapse=lapse))


def test_two_owners_are_found():
    assert found({"two-owners"}, Flaw.RESUMES_SOURCE)


def test_a_missing_flush_is_found_when_the_power_goes():
    def after_power_loss(seed, flaw):
        world = simulate(seed, flaw, workload=Workload(flush=0))
        disk = world.hosts[DESTINATION].storage.disks["copy"]
        disk.lose_power()
        asyncio.run(_check(world, disk))
        return kinds(world)

    async def _check(world, disk):
        world.check_disk(world.oracles["guest"], 0, disk, crashed=True)

    assert not set().union(*(after_power_loss(seed, Flaw.NONE) for seed in range(6)))
    assert set().union(*(after_power_loss(seed, Flaw.FORGETS_FLUSH) for seed in range(6)))


def test_a_guest_that_runs_nowhere_is_found():
    async def main():
        world = World(1)
        guest = await world.boot()
        await asyncio.sleep(0.01)
        guest.suspend()
        return {violation.kind for violation in world.check()}

    assert run(main()) == {"no-owner"}


_TRACE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_world import simulate
junk = [object() for _ in range(int(sys.argv[2]))]
print(simulate(7).trace.digest())
"""


def test_one_seed_is_one_course_of_events_in_every_process():
    digests = set()
    for number in (1, 2):
        argv = [sys.executable, "-c", _TRACE, os.path.dirname(__file__), str(number * 777)]
        environment = os.environ | {"PYTHONHASHSEED": str(number)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert digests == {f"{simulate(7).trace.digest()}\n"}
    assert simulate(8).trace.digest() not in digests
