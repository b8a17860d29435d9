"""A process guest that is moved while it stands still: what is counted for which phase."""

import time

import pytest

from vmferry.api import MoveLink
from vmferry_hypervisors.process import cold
from vmferry_hypervisors.process.launch import launch
from vmferry_hypervisors.process.trial import ProcessTrial, TrialOptions

MIB = 1 << 20


async def unshaped(port: int) -> int:
    return port


@pytest.mark.real
async def test_the_other_process_is_started_within_the_move_and_before_the_guest_stops(
    tmp_path, monkeypatch
):
    def slow(*args, **more):
        time.sleep(0.5)
        return launch(*args, **more)

    trial = ProcessTrial(TrialOptions(memory=16 * MIB))
    await trial.start(tmp_path, 4 * MIB)
    monkeypatch.setattr(cold, "launch", slow)
    try:
        moved = await trial.move("cold", MoveLink(0, unshaped))
        verdict = await trial.verdict(moved.location)
    finally:
        await trial.close()
    assert list(moved.phases) == ["prepare", "stop", "copy", "start"]
    assert moved.phases["prepare"] >= 0.5
    assert moved.downtime == pytest.approx(sum(moved.phases.values()) - moved.phases["prepare"])
    assert verdict.good, verdict
