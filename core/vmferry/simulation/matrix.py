"""The fault matrix: every step of the protocol, times every blow, times both hosts.

Its rows are not written down: they are the messages and journal writes that a few courses of a
migration without further harm turn out to have. A message that is added to the protocol, or a write
to the journal, is in the matrix by itself as soon as one of the courses has it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from vmferry.api.hooks import Phase
from vmferry.engine.policy import PolicyOptions
from vmferry.engine.settings import Settings
from vmferry.simulation import chance
from vmferry.simulation.blows import Blow, Hit
from vmferry.simulation.disk import DiskParameters
from vmferry.simulation.lanes import LinkParameters
from vmferry.simulation.ordeal import endure
from vmferry.simulation.outcome import Outcome
from vmferry.simulation.scenario import Fault, Harm, Scenario
from vmferry.simulation.steps import Edge, Moment, Step
from vmferry.simulation.workload import Workload
from vmferry.simulation.world import DESTINATION, SOURCE, WorldParameters
from vmferry.units import KIB

__all__ = ["COURSES", "Cell", "Passed", "cells", "messages_reached", "passed", "play"]

_SETTINGS = Settings(
    block_size=4 * KIB,
    piece=16 * KIB,
    pull_piece=4 * KIB,
    lanes=1,
    compression="none",
    patience=2.0,
    stall_timeout=20.0,
    reconnect=30.0,
    round_pause=0.01,
    mark_pause=0.05,
)
_WORLD = WorldParameters(
    disks=2,
    disk_size=96 * KIB,
    pages=32,
    link=LinkParameters(bandwidth=5e5),
    workload=Workload(workers=2, think=0.002, read=60, hot=0.3, eager=40),
)
_SLOW = msgspec.structs.replace(
    _WORLD,
    disk=DiskParameters(read=0.1),
    far_disk=DiskParameters(),
    workload=Workload(workers=3, think=0.0005, read=300, write=5, partial=0, hot=0.0, eager=100),
)
_PLAIN = Scenario(
    name="plain",
    world=_WORLD,
    settings=_SETTINGS,
    policy=PolicyOptions(threshold=1 << 30, max_rounds=1),
    must_arrive=False,
    patience=2.0,
)


def _course(name: str, *faults: Fault, **more: bool) -> Scenario:
    return msgspec.structs.replace(_PLAIN, name=name, faults=faults, **more)


def _fault(harm: Harm, phase: Phase, delay: float = 0.01) -> Fault:
    return Fault(harm=harm, phase=phase, delay=delay)


COURSES: Mapping[str, Scenario] = {
    course.name: course
    for course in (
        _PLAIN,
        _course("refused", refused=True),
        _course("cancelled", _fault(Harm.CANCEL, Phase.PUSH_DISK)),
        _course("push-resumed", _fault(Harm.CUT, Phase.PUSH_DISK, 0.15)),
        _course("push-continued", _fault(Harm.KILL_SOURCE, Phase.PUSH_DISK, 0.15)),
        _course("reconnected", _fault(Harm.CUT, Phase.PULL)),
        _course("source-resumed", _fault(Harm.KILL_SOURCE, Phase.PULL)),
        _course("resolved", _fault(Harm.KILL_SOURCE, Phase.PULL), resolves=True),
        _course("agent-restarted-in-push", _fault(Harm.KILL, Phase.PUSH_DISK, 0.15)),
        _course("agent-restarted", _fault(Harm.KILL, Phase.PULL)),
        _course("taken-back", _fault(Harm.KILL_SOURCE, Phase.STOP, 0.006)),
        msgspec.structs.replace(_PLAIN, name="asked-late", world=_SLOW),
    )
}
"""What a migration may go through anyway; a step that several have belongs to the first."""

_RARE = {"asked-late": "Pushed"}
"""What a course is for and does not have with every seed."""
_TRIES = 12


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what is done to which step of which course, at which host."""

    course: str
    step: Step
    blow: Blow
    host: str

    def __str__(self) -> str:
        return f"{self.course}/{self.step}/{self.blow}@{self.host}"


@dataclass(frozen=True, slots=True)
class Passed:
    """A course without blows: how often each step begins, and ends, and what it ran with."""

    seed: int
    begun: Mapping[Step, int]
    ended: Mapping[Step, int]
    total: int


@functools.cache
def passed(course: str, seed: int) -> Passed:
    """Have a course happen without blows.

    Raises:
        AssertionError: there is a violation even so.

    """
    for tried in range(seed, seed + 1000 * _TRIES, 1000):
        outcome, steps = endure(tried, COURSES[course])
        if outcome.violations:
            raise AssertionError(outcome.story())
        whats = {step.what for step in steps.counts}
        if _RARE.get(course) in {None, *whats}:
            break
    return Passed(tried, dict(steps.counts), dict(steps.ends), steps.total)


def _owners(seed: int) -> dict[Step, str]:
    """The course to which each step belongs."""
    owners: dict[Step, str] = {}
    for course in COURSES:
        for step in passed(course, seed).begun:
            owners.setdefault(step, course)
    return owners


def cells(seed: int = 0) -> Iterator[Cell]:
    """The whole matrix, as a seed has it; it is the same for nearly all seeds."""
    for step, course in _owners(seed).items():
        ended = passed(course, seed).ended
        for blow in Blow:
            if blow.edge is Edge.BEFORE or step in ended:
                for host in (SOURCE, DESTINATION):
                    yield Cell(course, step, blow, host)


def messages_reached(seed: int = 0) -> set[str]:
    """Names of the messages that the matrix has."""
    whats = {step.what for step in _owners(seed)}
    return {what.partition("/")[0] for what in whats if not what.startswith("journal.")}


def play(cell: Cell, seed: int = 0) -> Outcome:
    """Have a cell happen: to an occurrence of its step that the seed decides."""
    known = passed(cell.course, seed)
    times = (known.begun if cell.blow.edge is Edge.BEFORE else known.ended)[cell.step]
    random = chance.stream(seed, str(cell))
    number = random.choice((1, random.randint(1, times)))
    hit = Hit(cell.blow, cell.host, Moment(cell.step, cell.blow.edge, number))
    outcome, _ = endure(known.seed, COURSES[cell.course], [hit])
    outcome.replay = f"python -m vmferry.simulation cell '{cell}' --seed {seed}"
    return outcome
