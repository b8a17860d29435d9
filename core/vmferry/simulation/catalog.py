"""Scenarios by name, each different with every seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import msgspec

from vmferry.api.hooks import Phase
from vmferry.engine.policy import PolicyOptions
from vmferry.engine.settings import Settings
from vmferry.simulation import chance
from vmferry.simulation.disk import DiskParameters
from vmferry.simulation.lanes import LinkParameters
from vmferry.simulation.scenario import Fault, Harm, Scenario
from vmferry.simulation.temper import HypervisorParameters
from vmferry.simulation.tracker import Style, TrackerParameters
from vmferry.simulation.workload import Workload
from vmferry.simulation.world import WorldParameters
from vmferry.units import KIB, MIB

__all__ = ["CATALOG", "make"]

QUIET = Workload(workers=2, think=0.02, eager=100)
BUSY = Workload(workers=4, think=0.002, eager=200)
DIABOLIC = Workload(
    workers=6, think=0.001, write=90, partial=20, read=10, hot=0.2, largest=16, eager=250
)

_LONGEST = {
    Phase.HANDSHAKE: 0.005,
    Phase.PUSH_DISK: 0.2,
    Phase.PUSH_MEMORY: 0.05,
    Phase.STOP: 0.04,
    Phase.PULL: 0.2,
}
"""About how many seconds each phase lasts here."""


def _settings(random: Random) -> Settings:
    block = random.choice((4, 16, 64)) * KIB
    return Settings(
        block_size=block,
        piece=max(block, random.choice((16, 64, 256)) * KIB),
        pull_piece=max(block, random.choice((4, 16, 64)) * KIB),
        lanes=random.randint(1, 3),
        depth=random.randint(1, 4),
        bandwidth=random.choice((0, 0, 0, 20 * MIB)),
        compression=random.choice(("none", "none", "auto", "lz4", "zstd")),
        patience=5.0,
        reconnect=60.0,
        round_pause=random.choice((0.0, 0.01, 0.5)),
        mark_pause=random.choice((0.01, 0.05, 1.0)),
    )


def _link(random: Random) -> LinkParameters:
    return LinkParameters(
        latency=random.choice((0.0001, 0.0005, 0.005)),
        jitter=random.choice((0.0, 0.0005, 0.003)),
        bandwidth=random.choice((10e6, 30e6, 100e6)),
        window=random.choice((64, 256, 1024)) * KIB,
    )


def _tracker(random: Random) -> TrackerParameters:
    return TrackerParameters(
        style=random.choice(tuple(Style)),
        unit=random.choice((512, 512, 32 * KIB)),
        capacity=random.choice((0, 0, 100)),
        delay=random.choice((0.0, 0.005)),
    )


def _hypervisor(random: Random) -> HypervisorParameters:
    return HypervisorParameters(
        rounds=random.randint(1, 5),
        own_go=random.random() < 0.3,
        suspends_itself=random.random() < 0.3,
        reissues=random.random() < 0.7,
    )


def _world(random: Random, workload: Workload) -> WorldParameters:
    sector = random.choice((512, 512, 4096))
    return WorldParameters(
        disk_size=random.choice((1, 2, 4)) * MIB - random.choice((0, 7)) * sector,
        sector_size=sector,
        filled=random.choice((0.1, 0.6, 1.0)),
        pages=random.choice((64, 256)),
        link=_link(random),
        disk=DiskParameters(write=random.choice((0.0004, 0.003))),
        workload=workload,
        tracker=_tracker(random),
        hypervisor=_hypervisor(random),
    )


def _basis(name: str, random: Random, workload: Workload = BUSY) -> Scenario:
    threshold = random.choice((0, 64, 256)) * KIB
    return Scenario(
        name=name,
        world=_world(random, workload),
        settings=_settings(random),
        policy=PolicyOptions(threshold=threshold, max_rounds=random.randint(1, 5)),
        shuffle=random.random() < 0.3,
    )


def _quiet(name: str, random: Random) -> Scenario:
    return _basis(name, random, QUIET)


def _diabolic(name: str, random: Random) -> Scenario:
    """A guest that writes faster than the link."""
    basis = _basis(name, random, DIABOLIC)
    link = LinkParameters(bandwidth=3e6)
    settings = msgspec.structs.replace(basis.settings, compression="none")
    world = msgspec.structs.replace(basis.world, link=link, disk_size=MIB)
    return msgspec.structs.replace(basis, world=world, settings=settings)


def _disks(name: str, random: Random) -> Scenario:
    basis = _basis(name, random)
    world = msgspec.structs.replace(basis.world, disks=random.randint(2, 4), disk_size=MIB)
    return msgspec.structs.replace(basis, world=world)


def _with(basis: Scenario, *faults: Fault, must_arrive: bool = False) -> Scenario:
    return msgspec.structs.replace(basis, faults=faults, must_arrive=must_arrive)


def _moment(random: Random, phase: Phase) -> float:
    return random.choice((0.0, random.random() * _LONGEST[phase]))


def _lost(phase: Phase) -> Callable[[str, Random], Scenario]:
    """The connections are lost in a phase; for a while nobody can connect."""

    def make(name: str, random: Random) -> Scenario:
        pause = random.choice((0.0, 0.3, 20.0))
        fault = Fault(harm=Harm.CUT, phase=phase, delay=_moment(random, phase), seconds=pause)
        return _with(_basis(name, random), fault, must_arrive=phase is Phase.PULL)

    return make


def _stalled(phase: Phase) -> Callable[[str, Random], Scenario]:
    """Nothing gets through in a phase, for less or for more than patience lasts."""

    def make(name: str, random: Random) -> Scenario:
        seconds = random.choice((0.5, 3.0, 12.0))
        fault = Fault(harm=Harm.STALL, phase=phase, delay=_moment(random, phase), seconds=seconds)
        return _with(_basis(name, random), fault, must_arrive=seconds < 5 or phase is Phase.PULL)

    return make


def _cancelled(phase: Phase) -> Callable[[str, Random], Scenario]:
    """The operator interrupts the source in a phase, sometimes twice."""

    def make(name: str, random: Random) -> Scenario:
        first = _moment(random, phase)
        moments = (first, first + random.choice((0.0, 0.01 * random.random())))
        times = random.choice((1, 1, 2))
        faults = [Fault(harm=Harm.CANCEL, phase=phase, delay=moment) for moment in moments]
        return _with(_basis(name, random), *faults[:times])

    return make


def _killed(name: str, random: Random) -> Scenario:
    """The destination's agent is killed in PULL, sometimes twice, and started anew."""
    first = _moment(random, Phase.PULL)
    moments = (first, first + 1.0 + random.random())
    faults = [
        Fault(harm=Harm.KILL, phase=Phase.PULL, delay=moment, seconds=random.random())
        for moment in moments
    ]
    basis = random.choice((_diabolic, _basis))(name, random)
    return _with(basis, *faults[: random.choice((1, 1, 2))], must_arrive=True)


def _killed_in_push(harm: Harm) -> Callable[[str, Random], Scenario]:
    """A program is killed in PUSH and started anew; then perhaps the connection is lost, too."""

    def make(name: str, random: Random) -> Scenario:
        phase = random.choice((Phase.PUSH_DISK, Phase.PUSH_DISK, Phase.PUSH_MEMORY))
        basis = random.choice((_basis, _disks))(name, random)
        slow = msgspec.structs.replace(basis.world, link=LinkParameters(bandwidth=5e6), filled=1.0)
        plain = msgspec.structs.replace(basis.settings, compression="none")
        basis = msgspec.structs.replace(basis, world=slow, settings=plain)
        delay = random.random() * _LONGEST[phase] / 2
        delay += 0.05 if phase is Phase.PUSH_DISK else 0.0
        kill = Fault(harm=harm, phase=phase, delay=delay, seconds=0.1 + random.random())
        cut = Fault(harm=Harm.CUT, phase=Phase.PUSH_DISK, delay=delay + kill.seconds + 0.1)
        return _with(basis, kill, *[cut][: random.choice((0, 0, 1))])

    return make


def _hasty(name: str, random: Random) -> Scenario:
    """The operator asks for the switch before the full copy has ended."""
    fault = Fault(harm=Harm.SWITCH, phase=Phase.PUSH_DISK, delay=random.random() * 0.05)
    return _with(_basis(name, random), fault, must_arrive=True)


def _no_pull(name: str, random: Random) -> Scenario:
    """Nothing, or little, may be left to pull: the rest is sent while the guest stands still."""
    basis = random.choice((_diabolic, _basis, _disks))(name, random)
    limit = random.choice((0, 0, 64 * KIB))
    settings = msgspec.structs.replace(basis.settings, pull_limit=limit)
    return msgspec.structs.replace(basis, settings=settings)


def _flaky(name: str, random: Random) -> Scenario:
    """Connections are lost again and again."""
    basis = _basis(name, random)
    return msgspec.structs.replace(basis, cut=random.choice((0.003, 0.02)), must_arrive=False)


def _corrupt(name: str, random: Random) -> Scenario:
    """The network changes bytes."""
    basis = _basis(name, random)
    return msgspec.structs.replace(basis, corrupt=random.choice((0.01, 0.05)), must_arrive=False)


_PHASES = tuple(_LONGEST)

CATALOG: Mapping[str, Callable[[str, Random], Scenario]] = {
    "quiet": _quiet,
    "busy": _basis,
    "diabolic": _diabolic,
    "disks": _disks,
    "hasty": _hasty,
    "no-pull": _no_pull,
    "killed": _killed,
    "killed-push": _killed_in_push(Harm.KILL),
    "power-lost": _killed_in_push(Harm.POWER),
    "continued": _killed_in_push(Harm.KILL_SOURCE),
    "flaky": _flaky,
    "corrupt": _corrupt,
    **{f"lost-{phase.value}": _lost(phase) for phase in _PHASES},
    **{f"stalled-{phase.value}": _stalled(phase) for phase in _PHASES},
    **{f"cancelled-{phase.value}": _cancelled(phase) for phase in _PHASES},
}
"""Makes a scenario of the name it is given, varied by the generator."""


def make(name: str, seed: int) -> Scenario:
    """The scenario of that name as that seed varies it."""
    return CATALOG[name](name, chance.stream(seed, f"scenario/{name}"))
