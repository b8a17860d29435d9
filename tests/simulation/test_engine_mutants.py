"""Faults put into the engine: the simulated world must find every one of them."""

import msgspec
import pytest

from vmferry.api.hooks import Phase
from vmferry.engine import (
    afterwards,
    comparing,
    destination,
    disks,
    leaving,
    ledger,
    livebits,
    pullcopy,
    pulldisk,
    push,
    receiver,
    stay,
)
from vmferry.engine.policy import PolicyOptions
from vmferry.engine.settings import Settings
from vmferry.simulation.catalog import BUSY, DIABOLIC, make
from vmferry.simulation.disk import DiskParameters
from vmferry.simulation.lanes import LinkParameters
from vmferry.simulation.runner import simulate
from vmferry.simulation.scenario import Harm, Scenario
from vmferry.simulation.temper import HypervisorParameters, Lapse
from vmferry.simulation.tracker import Mistake, TrackerParameters
from vmferry.simulation.workload import Workload
from vmferry.simulation.world import WorldParameters
from vmferry.wire.compress import expand

pytestmark = [pytest.mark.mutant, pytest.mark.timeout(900)]

SEEDS = range(48)
LOSS = {"lost", "bad-read", "changed", "wrong"}
MIB = 1 << 20


def found(wanted, scenario_of):
    """Whether some seed shows one of the wanted kinds of violation."""
    for seed in SEEDS:
        outcome = simulate(seed, scenario_of(seed))
        if {violation.kind for violation in outcome.violations} & wanted:
            return True
    return False


def scenario(policy=None, settings=None, **world):
    parameters = {"disk_size": MIB, "workload": BUSY} | world
    return Scenario(
        name="mutant",
        world=WorldParameters(**parameters),
        policy=policy or PolicyOptions(threshold=0, max_rounds=3),
        settings=settings or Settings(block_size=16384, piece=16384, compression="none"),
    )


ENGINE_MUTANTS = {
    "no harvest after the suspend": (
        disks.SourceDisk,
        "last_harvest",
        "    await self.harvest()\n",
        "",
    ),
    "what is harvested replaces what was to do": (
        disks.SourceDisk,
        "_harvest",
        "self.todo.update(await tracker.harvest())",
        "self.todo = await tracker.harvest()",
    ),
    "what was not sent when the switch came is forgotten": (
        disks.SourceDisk,
        "wire_map",
        "self.todo.coarsen(self.offered)",
        "DirtyMap(self.disk.size, self.offered)",
    ),
    "late data replaces the guest's": (
        pullcopy.LocalCopy,
        "_store",
        "list(dirty_runs(self._pending, offset, offset + length))",
        "[(offset, length)]",
    ),
    "a block is local before its data is written": (
        pullcopy.LocalCopy,
        "_store_run",
        "    if data is None:",
        "    self._clear(offset, length)\n    if data is None:",
    ),
    "edges are not fetched": (
        pullcopy.LocalCopy,
        "overwrite",
        "await self._fetch_edges(offset, length)",
        "self._clear(*self._outer(offset, length))",
    ),
    "a block overwritten by the guest stays pending": (
        pullcopy.LocalCopy,
        "_write_whole",
        "        self._clear(*inner)\n",
        "",
    ),
    "pending blocks are read as they are": (
        pulldisk.PullDisk,
        "read_into",
        "if copy.touches_pending(offset, buffer.nbytes):",
        "if False:",
    ),
}


RESUMED_PUSH_MUTANTS = {
    "what is under way is not sent again": (
        ledger.Ledger,
        "put_back",
        "(*self._handed, *self._gone, *self._marked)",
        "self._handed",
    ),
    "what no lane has taken yet is not sent again": (
        ledger.Ledger,
        "put_back",
        "(*self._handed, *self._gone, *self._marked)",
        "(*self._gone, *self._marked)",
    ),
    "what was sent behind a barrier is believed to be before it": (
        push.Push,
        "_ask_until",
        "            self._ledger.mark()\n            await self.sender.barrier()\n",
        "            await self.sender.barrier()\n            self._ledger.mark()\n",
    ),
    "disks that were not begun are forgotten": (
        push.Push,
        "put_back",
        "disk.todo.mark_all()",
        "pass",
    ),
}


CONTINUED_PUSH_MUTANTS = {
    "all digests are taken for equal": (
        comparing,
        "_differences",
        "mine[at : at + _SIZE] != theirs[at : at + _SIZE]",
        "False",
    ),
    "disks are compared before they are tracked": (
        leaving.Leaving,
        "go",
        "    for disk in disks:\n        await disk.start_tracking()\n",
        "    if push.comparer is not None:\n"
        "        trackers = [disk.tracker for disk in disks]\n"
        "        for disk in disks:\n            disk.tracker = None\n"
        "        await push.converge()\n"
        "        for disk, tracker in zip(disks, trackers):\n            disk.tracker = tracker\n"
        "    for disk in disks:\n        await disk.start_tracking()\n",
    ),
    "what was not compared when the connection broke is taken for equal": (
        comparing,
        "_of_disk",
        "for offset, length in unsure.runs(settled):",
        "for offset, length in ():",
    ),
}


def _outer(copy, offset, length):
    block = copy._pending.block_size
    first = offset // block * block
    return first, min(-(-(offset + length) // block) * block, copy._size) - first


@pytest.mark.parametrize("name", ENGINE_MUTANTS)
def test_a_fault_in_the_data_path_is_found(name, monkeypatch, mutate):
    monkeypatch.setattr(pullcopy.LocalCopy, "_outer", _outer, raising=False)
    mutate(*ENGINE_MUTANTS[name])
    assert found(LOSS, lambda seed: make("diabolic" if seed % 2 else "busy", seed))


@pytest.mark.parametrize("name", RESUMED_PUSH_MUTANTS)
def test_a_fault_in_going_on_with_push_is_found(name, mutate):
    mutate(*RESUMED_PUSH_MUTANTS[name])
    assert found(LOSS, lambda seed: cut_in_push(seed))


@pytest.mark.parametrize("name", CONTINUED_PUSH_MUTANTS)
def test_a_fault_in_going_on_in_another_process_is_found(name, mutate):
    mutate(*CONTINUED_PUSH_MUTANTS[name])
    assert found(LOSS, killed_in_push)


def test_believing_what_a_host_had_before_it_lost_power_is_found(mutate):
    mutate(
        destination.DestinationJob,
        "take_up",
        "self._has_data = self._unsure = True",
        "self._has_data = True",
    )
    assert found(LOSS, power_lost)


def test_going_on_after_programs_and_hosts_died_loses_nothing():
    """The same scenarios as above, unharmed."""
    for seed in range(6):
        for scenario_of in (killed_in_push, power_lost):
            outcome = simulate(seed, scenario_of(seed))
            assert not outcome.violations, outcome.story()


def killed_in_push(seed):
    """And with every other seed the connection is lost while what is there is being compared."""
    made = make("continued", seed)
    (kill, *_) = made.faults
    kill = msgspec.structs.replace(kill, phase=Phase.PUSH_DISK, delay=0.1, seconds=0.1)
    again = 0.215 + seed % 8 * 0.01
    cut = msgspec.structs.replace(kill, harm=Harm.CUT, delay=again, seconds=0.0)
    world = msgspec.structs.replace(made.world, disk=DiskParameters(read=0.003))
    return msgspec.structs.replace(made, world=world, faults=(kill, cut)[: 1 + seed % 2])


def cut_in_push(seed):
    made = make("lost-push-disk", seed)
    world = msgspec.structs.replace(
        made.world,
        disks=2,
        filled=1.0,
        link=LinkParameters(bandwidth=3e6, window=65536),
        workload=BUSY,
    )
    settings = msgspec.structs.replace(
        made.settings, mark_pause=0.02, bandwidth=0, block_size=16384, piece=16384
    )
    fault = msgspec.structs.replace(made.faults[0], delay=0.2 + seed * 0.03, seconds=0.0)
    return msgspec.structs.replace(made, world=world, settings=settings, faults=(fault,))


def power_lost(seed):
    made = cut_in_push(seed % 8)
    fault = msgspec.structs.replace(made.faults[0], harm=Harm.POWER, seconds=0.2)
    return msgspec.structs.replace(made, faults=(fault,))


def test_forgetting_the_drain_is_found(mutate):
    mutate(
        disks.SourceDisk,
        "last_harvest",
        "    await self.tracker.drain()\n",
        "    pass\n",
    )
    slow = scenario(
        disk=DiskParameters(write=0.02),
        far_disk=DiskParameters(),
        workload=Workload(think=0.0, workers=8, hot=0.0, eager=100),
        tracker=TrackerParameters(delay=0.0),
        hypervisor=HypervisorParameters(reissues=False),
    )
    assert found(LOSS, lambda seed: slow)


def test_resuming_after_the_commit_is_found(mutate):
    mutate(
        afterwards.Afterwards,
        "_destroy",
        "self._departure.destroy()",
        "self._departure.resume()",
    )
    assert found({"two-owners"}, lambda seed: scenario())


def test_not_resuming_after_a_failure_is_found(mutate):
    mutate(
        leaving.Leaving,
        "_resume",
        "departure.resume()",
        "asyncio.sleep(0)",
    )
    assert found({"no-owner"}, lambda seed: make("lost-stop", seed))


def test_saying_go_before_the_destination_is_ready_is_found(mutate):
    """Running at the destination while the source may still roll back."""
    mutate(
        stay.Stay,
        "_take_ownership",
        "    go = await link.expect(Go)\n",
        "    await asyncio.shield(self._own())\n    go = await link.expect(Go)\n",
    )
    # the link must fail in one short moment, which few seeds hit
    assert found({"two-owners"}, lambda seed: make("stalled-stop", 20 + seed))


def test_missing_flushes_are_found(monkeypatch, mutate):
    async def nothing(*_):
        return

    monkeypatch.setattr(destination.DestinationJob, "_flush", nothing)
    monkeypatch.setattr(stay.Stay, "_flush", nothing)
    mutate(stay.Stay, "_pivot", "            await disk.volume.flush()\n", "")
    assert found({"lost"}, lambda seed: scenario(workload=Workload(flush=0)))


def test_digests_that_are_not_compared_are_found(monkeypatch):
    def unseal(extent, payload):
        if extent.zero:
            return None
        return memoryview(expand("Extent", extent.codec, payload, extent.length))

    monkeypatch.setattr(receiver, "unseal", unseal)
    assert found({"wrong"}, lambda seed: make("corrupt", seed))


MISTAKES = [mistake for mistake in Mistake if mistake is not Mistake.NONE]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_tracker_is_found(mistake):
    in_flight = mistake in {Mistake.NO_DRAIN, Mistake.NO_BARRIER}
    world = {
        "tracker": TrackerParameters(
            mistake=mistake,
            capacity=8 if mistake is Mistake.FORGETS_OVERFLOW else 0,
            delay=0.0 if in_flight else 0.005,
        ),
        "hypervisor": HypervisorParameters(reissues=mistake is not Mistake.NO_DRAIN),
    }
    if in_flight:
        world["disk"] = DiskParameters(write=0.02)
        world["far_disk"] = DiskParameters()
        world["workload"] = Workload(think=0.0, workers=8, hot=0.0, eager=100)
    wrong = scenario(**world)
    assert found(LOSS, lambda seed: wrong)


@pytest.mark.parametrize(
    ("lapse", "kinds"),
    [
        (Lapse.SKIPS_LAST_PAGES, {"memory"}),
        (Lapse.STALE_STATE, {"record"}),
        (Lapse.RUNS_ON, {"two-owners"}),
        (Lapse.DROPS_OUTSTANDING, LOSS),
    ],
)
def test_a_lapse_of_the_hypervisor_is_found(lapse, kinds):
    wrong = scenario(hypervisor=HypervisorParameters(lapse=lapse))
    assert found(kinds, lambda seed: wrong)


@pytest.mark.parametrize("workload", [BUSY, DIABOLIC])
def test_without_a_fault_nothing_is_found(workload):
    """The same scenarios as above, unharmed."""
    plain = scenario(workload=workload)
    emulated = msgspec.structs.replace(
        plain, world=msgspec.structs.replace(plain.world, hypervisor=HypervisorParameters())
    )
    for seed in range(4):
        for one in (plain, emulated):
            outcome = simulate(seed, one)
            assert not outcome.violations, outcome.story()


def test_forgetting_what_became_local_before_the_agent_was_killed_is_found(mutate):
    mutate(livebits.LiveBits, "without", "if not runs:", "if True:")
    assert found(LOSS, lambda seed: make("killed", seed))
