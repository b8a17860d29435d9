"""A destination whose disk hangs while its agent goes on answering."""

import asyncio

import msgspec
import pytest

from vmferry.engine.destination import DestinationJob
from vmferry.engine.pull import PullDestination
from vmferry.simulation.catalog import make
from vmferry.simulation.runner import simulate
from vmferry.simulation.world import DESTINATION, SOURCE

SEEDS = range(5)


def hanging(monkeypatch, owner, name, seconds=30.0):
    """From the first call of a method on, all of them hang for a time."""
    original = getattr(owner, name)
    began = {}

    async def hangs(self, *args):
        loop = asyncio.get_running_loop()
        until = began.setdefault(id(loop), loop.time()) + seconds
        await asyncio.sleep(max(0, until - loop.time()))
        await original(self, *args)

    monkeypatch.setattr(owner, name, hangs)


def scenario(name, seed, stall_timeout, **more):
    made = make(name, seed)
    settings = msgspec.structs.replace(made.settings, stall_timeout=stall_timeout, **more)
    return msgspec.structs.replace(made, settings=settings, must_arrive=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_in_push_the_guest_stays_and_phase_and_peer_are_named(monkeypatch, seed):
    hanging(monkeypatch, DestinationJob, "_write")
    outcome = simulate(seed, scenario("quiet", seed, 4.0, reconnect=0.0))
    assert not outcome.violations, outcome.story()
    assert outcome.owner == SOURCE
    assert "push-disk: nothing moved to or from" in str(outcome.error)


def test_in_pull_the_source_comes_back(monkeypatch):
    hanging(monkeypatch, PullDestination, "arrive", 100.0)
    stalled = 0
    for seed in SEEDS:
        outcome = simulate(seed, scenario("diabolic", seed, 4.0))
        assert not outcome.violations, outcome.story()
        assert outcome.owner == DESTINATION
        said = "\n".join(outcome.world.trace.lines("engine"))
        if "pull: nothing moved to or from" in said:
            assert "reconnected" in said
            stalled += 1
    assert stalled >= 2  # in the others the guest overwrites all that was pending


@pytest.mark.parametrize("name", ["quiet", "diabolic"])
def test_a_hang_that_is_shorter_is_waited_for(monkeypatch, name):
    hanging(monkeypatch, DestinationJob, "_write")
    hanging(monkeypatch, PullDestination, "arrive")
    outcome = simulate(1, scenario(name, 1, 60.0))
    assert not outcome.violations, outcome.story()
    assert outcome.owner == DESTINATION
