"""Faults put into the engine's protocol: the fault matrix must find every one of them."""

from __future__ import annotations

import re

import pytest

from vmferry.engine import afterwards, leaving, livebits, pulldisk, resuming, stay
from vmferry.simulation.matrix import cells, play

pytestmark = [pytest.mark.mutant, pytest.mark.timeout(900)]

LOSS = {"lost", "bad-read", "changed", "wrong"}


@pytest.fixture(scope="module")
def matrix():
    """The cells as the engine has them that is not spoilt."""
    return list(cells())


def found(matrix, pattern, wanted, seeds=(0,)):
    """Whether a cell whose name has the pattern shows a wanted kind of violation."""
    chosen = [cell for cell in matrix if re.search(pattern, str(cell))]
    assert chosen, pattern
    return any(
        {violation.kind for violation in play(cell, seed).violations} & wanted
        for seed in seeds
        for cell in chosen
    )


def test_a_commit_that_is_journalled_after_go_is_found(matrix, mutate):
    mutate(
        leaving.Leaving,
        "_stop_and_commit",
        "await services.journal.update(self._job, committed=True)",
        "pass",
    )
    mutate(
        afterwards.Afterwards,
        "_release",
        "await link.expect(Running)",
        "await link.expect(Running); await self._note(committed=True)",
    )
    pattern = r"stop:(Go/crash-after|journal.decide.*/crash-before|Running/crash-before)@alpha"
    assert found(matrix, pattern, {"two-owners"})


def test_a_source_that_resumes_its_guest_after_the_commit_is_found(matrix, mutate):
    mutate(resuming.ResumedJob, "run", "if not self.committed:", "if True:")
    pattern = r"beta:stop:Running/crash-(before|after)@alpha"
    assert found(matrix, pattern, {"two-owners"})


def test_a_rollback_after_go_was_sent_is_found(matrix, mutate):
    mutate(
        leaving.Leaving,
        "_stop_and_commit",
        "    self.after = Afterwards(",
        "    from vmferry.wire.messages import Go\n"
        "    await link.send(Go(epoch=self.accepted.epoch))\n"
        "    await asyncio.sleep(0.1)\n"
        "    self.after = Afterwards(",
    )
    assert found(matrix, r"beta:stop:journal.decide\(owner\)/lost@", {"two-owners"})


def test_a_guest_that_runs_before_its_owner_is_durable_is_found(matrix, mutate):
    mutate(
        stay.Stay,
        "_own",
        '        if (await journal.decide(self.job, "owner")).withdrawn:',
        "        await self.arrival.activate()\n"
        '        if (await journal.decide(self.job, "owner")).withdrawn:',
    )
    wanted = {"two-owners", "stuck", "not-local"}
    assert found(matrix, r"beta:stop:journal.decide\(owner\)/crash-(before|after)@beta", wanted)


def test_a_pending_map_that_is_not_journalled_is_found(matrix, mutate):
    mutate(
        pulldisk.PullDisk,
        "ready",
        "    await self._save(await encoded(pending, self._workers))\n",
        "",
    )
    assert found(matrix, r"pull:Fetch/crash-(before|after)@beta", {"stuck", "not-local", *LOSS})


def test_forgetting_what_became_local_is_found(matrix, mutate):
    mutate(livebits.LiveBits, "without", "if not runs:", "if True:")
    assert found(matrix, r"alpha:pull:.*/crash-(before|after)@beta", LOSS, range(4))
