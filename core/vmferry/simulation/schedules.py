"""Random schedules: migrations that differ with every seed, dealt up to three blows each."""

from __future__ import annotations

from random import Random

import msgspec

from vmferry.simulation import chance
from vmferry.simulation.blows import Blow, Hit
from vmferry.simulation.matrix import COURSES, Passed, passed
from vmferry.simulation.ordeal import endure
from vmferry.simulation.outcome import Outcome
from vmferry.simulation.scenario import Scenario
from vmferry.simulation.steps import Edge, Moment
from vmferry.simulation.temper import HypervisorParameters
from vmferry.simulation.tracker import Style, TrackerParameters
from vmferry.simulation.world import DESTINATION, SOURCE

__all__ = ["play_schedule"]

_MOST_BLOWS = 3
_NAMED = tuple(COURSES)


def play_schedule(seed: int) -> Outcome:
    """Have the schedule of that number happen; the same number is the same course of events."""
    random = chance.stream(seed, "schedule")
    course = random.choice(_NAMED)
    known = passed(course, 0)
    blows = random.choice((1, 2, 2, _MOST_BLOWS))
    hits = [
        Hit(
            random.choice(tuple(Blow)), random.choice((SOURCE, DESTINATION)), _moment(random, known)
        )
        for _ in range(blows)
    ]
    outcome, _ = endure(seed, _varied(COURSES[course], random), hits, all_dealt=False)
    outcome.replay = f"python -m vmferry.simulation schedule {seed}"
    return outcome


def _moment(random: Random, known: Passed) -> Moment | int:
    """Any moment, or as often one of the rarer steps."""
    if random.random() < 0.5:
        return random.randint(1, known.total)
    step = random.choice(tuple(known.ended))
    edge = random.choice(tuple(Edge))
    return Moment(step, edge, random.randint(1, known.ended[step]))


def _varied(course: Scenario, random: Random) -> Scenario:
    replace = msgspec.structs.replace
    tracker = TrackerParameters(style=random.choice(tuple(Style)))
    hypervisor = HypervisorParameters(
        own_go=random.random() < 0.3,
        suspends_itself=random.random() < 0.3,
        reissues=random.random() < 0.7,
    )
    world = replace(
        course.world, disks=random.randint(1, 2), tracker=tracker, hypervisor=hypervisor
    )
    settings = replace(course.settings, lanes=random.randint(1, 2))
    shuffle, resolves = random.random() < 0.3, random.random() < 0.5
    hypervisor = replace(hypervisor, serves=random.random() < 0.3)
    world = replace(world, hypervisor=hypervisor)
    return replace(course, world=world, settings=settings, shuffle=shuffle, resolves=resolves)
