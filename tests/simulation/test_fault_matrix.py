"""Every message and journal write of the protocol, times every fault, times both hosts.

One cell in four, unless ``VMFERRY_EFFORT`` is 4 or more; each step, fault and host is in some.

``python -m vmferry.simulation matrix`` has the whole matrix with another seed, ``cell NAME`` one
cell again, ``schedule FIRST LAST`` random schedules; see ``docs/fault-matrix.md``.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vmferry.simulation.blows import Blow
from vmferry.simulation.matrix import cells, messages_reached, play
from vmferry.simulation.schedules import play_schedule
from vmferry.simulation.world import DESTINATION, SOURCE
from vmferry.wire.messages import MESSAGES

pytestmark = pytest.mark.timeout(900)

EFFORT = int(os.environ.get("VMFERRY_EFFORT", "1"))
"""How many times the usual number of cells and schedules."""

STRIDE = max(1, 4 // EFFORT)
SCHEDULES = 100 * EFFORT
CHUNK = 50


def test_every_message_is_in_the_matrix():
    # Taken is said after 256 KiB of the stream only, which the simulated memory does not have
    known = {message.__name__ for message in MESSAGES} - {"Taken"}
    # what a course passes is a matter of draws: a short one may have nothing left to push
    reached = set().union(*map(messages_reached, range(3)))
    assert reached == known


def every(blow, host):
    return [cell for cell in cells() if (cell.blow, cell.host) == (blow, host)]


def sample(blow, host):
    """One in ``STRIDE``, others for each fault and host: together they are at every step."""
    first = (list(Blow).index(blow) + 2 * (host == DESTINATION)) % STRIDE
    return every(blow, host)[first::STRIDE]


@pytest.mark.parametrize("host", [SOURCE, DESTINATION])
def test_every_step_is_tried_with_some_fault_at_each_host(host):
    tried = {(cell.course, cell.step) for blow in Blow for cell in sample(blow, host)}
    assert tried == {(cell.course, cell.step) for cell in cells() if cell.host == host}


@pytest.mark.parametrize("host", [SOURCE, DESTINATION])
@pytest.mark.parametrize("blow", Blow)
def test_nothing_is_lost_and_one_host_runs_the_guest_whatever_happens_when(blow, host):
    failed = []
    assert len(every(blow, host)) > 40
    for cell in sample(blow, host):
        if (outcome := play(cell)).violations:
            failed.append(outcome.story())
    assert not failed, "\n\n".join(failed)


@pytest.mark.parametrize("first", range(0, SCHEDULES, CHUNK))
def test_nothing_is_lost_and_one_host_runs_the_guest_under_random_schedules(first):
    for seed in range(first, first + CHUNK):
        outcome = play_schedule(seed)
        assert not outcome.violations, outcome.story()


@pytest.mark.parametrize(
    ("seed", "without"),
    [(432, "Afterwards.leave"), (203, "ResumedJob._end"), (403, "noting the end after it")],
)
def test_what_serves_a_guests_disks_is_there_as_long_as_it_is_needed_and_no_longer(seed, without):
    """Schedules that are violated without what is named."""
    outcome = play_schedule(seed)
    assert outcome.world.parameters.hypervisor.serves
    assert not outcome.violations, f"{without}\n{outcome.story()}"


def say(*arguments):
    """Run ``python -m vmferry.simulation``; returns its exit code and what it says."""
    command = [sys.executable, "-m", "vmferry.simulation", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_cell_and_a_schedule_can_be_had_again_by_name_and_number():
    name = "plain/alpha:stop:Suspended/lost@alpha"
    assert name in say("list")[1].splitlines()
    assert say("cell", name) == (0, "no violation\n")
    assert say("schedule", "17") == (0, "1 simulated, 0 with violations\n")
    code, said = say("cell", "plain/alpha:stop:Nothing/lost@alpha")
    assert code
    assert "there is no cell" in said


def test_one_cell_is_one_course_of_events():
    cell = next(cells())
    assert play(cell).world.trace.digest() == play(cell).world.trace.digest()
    other = play(cell, 1)
    assert not other.violations, other.story()
    assert other.world.trace.digest() != play(cell).world.trace.digest()
