"""Guests of trials: whether one that was moved goes on, and what it was given, by any method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from vmferry.api import Load, Moved, TrialStatus, Verdict
from vmferry.errors import HypervisorError
from vmferry.experiments.backends import backend, trial
from vmferry.experiments.backends.trial import TrialBackend, TrialRun
from vmferry.experiments.executors import perform
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import Result, RunSpec
from vmferry.experiments.shaping import Link

METHODS = ("vmferry", "cold")


class Guest:
    """A trial whose guest says that it goes on when it is asked for the second time."""

    asked = 0
    speaks_at = 2
    errors = 0
    gone = False
    tells_switch = True

    async def start(self, folder: Path, disk_size: int) -> str:
        return "demo"

    async def move(self, method: str, link: Any) -> Moved:
        return Moved(phases={"copy": 1.0}, location="copy.raw")

    async def status(self) -> TrialStatus:
        self.asked += 1
        if self.gone:
            raise HypervisorError("guest demo ended")
        speaks = self.asked >= self.speaks_at
        return TrialStatus(errors=self.errors, switch_gap=0.25 if speaks else None)

    def host_options(self, role: str) -> dict[str, str]:
        return {}

    async def verdict(self, location: str) -> Verdict:
        return Verdict(acknowledged=9, checked=512)

    async def close(self) -> None:
        pass


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    found = Guest()

    async def migrate(self: TrialRun, guest: str) -> str:
        return "pool/disk0.raw"

    monkeypatch.setattr(TrialBackend, "make", lambda self, spec: found)
    monkeypatch.setattr(TrialRun, "_migrate", migrate)
    monkeypatch.setattr(TrialRun, "watched", lambda self: _Nobody())
    monkeypatch.setattr(trial, "_GOES_ON", 0.3)
    return found


class _Nobody:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


def spec(method: str, **more: Any) -> RunSpec:
    parameters = Parameters(method=method, disk_size=1 << 20)
    return RunSpec(parameters=parameters, before=0, after=0, **more)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is one that never says how long its guest stood still."""
    monkeypatch.setattr(Guest, "tells_switch", False)


@pytest.mark.parametrize("method", METHODS)
async def test_a_guest_that_was_moved_is_waited_for(guest: Guest, method: str) -> None:
    result = await perform(spec(method))
    assert result.outcome == "done", result.error
    assert result.figures["downtime_guest"] == 0.25


@pytest.mark.parametrize("method", METHODS)
async def test_a_guest_that_hangs_there_is_a_failure(guest: Guest, method: str) -> None:
    guest.speaks_at = 1 << 30
    result = await perform(spec(method))
    assert result.outcome == "failed"
    assert "in 0.3 s nothing is heard of it" in result.error


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("method", METHODS)
async def test_of_a_trial_that_cannot_tell_it_is_not_expected(guest: Guest, method: str) -> None:
    guest.speaks_at = 1 << 30
    result = await perform(spec(method))
    assert (result.outcome, result.error) == ("done", "")
    assert result.figures["downtime_guest"] is None


@pytest.mark.parametrize("method", METHODS)
async def test_errors_that_the_guest_was_given_are_a_failure(guest: Guest, method: str) -> None:
    guest.errors = 3
    result = await perform(spec(method))
    assert result.outcome == "failed"
    assert "3 I/O errors" in result.error


async def test_a_guest_that_is_gone_is_told_at_once(guest: Guest) -> None:
    guest.gone = True
    result = await perform(spec("vmferry"))
    assert result.error == "HypervisorError: guest demo ended"
    assert guest.asked == 1


@pytest.mark.parametrize("method", METHODS)
async def test_a_link_loses_by_the_seed_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seeds: list[int] = []

    def shaped(link: Link, seed: int = 1) -> Any:
        seeds.append(seed)
        raise HypervisorError("that is enough")

    monkeypatch.setattr(trial, "shaped", shaped)
    monkeypatch.setattr(trial.Child, "migrate", lambda *_: _Nobody())
    guest: Any = Guest()
    run = TrialRun(guest, spec(method, seed=77), tmp_path, Result())
    monkeypatch.setattr(run, "watched", _Nobody)
    with pytest.raises(HypervisorError, match="enough"):
        await run.play()
    assert seeds == [77]


FIO = Load(fio="[one]\nverify=crc32c\nrw=write\nsize=1m\n")


@pytest.mark.parametrize(
    ("hypervisor", "load"), [("process", Load()), ("qemu", Load()), ("qemu", FIO)]
)
def test_guests_of_this_machine_say_that_they_go_on(hypervisor: str, load: Load) -> None:
    parameters = Parameters(hypervisor=hypervisor, memory=128 << 20)
    made = msgspec.structs.replace(spec("cold"), parameters=parameters, load=load)
    found: Any = backend(hypervisor)
    assert found.kind(made).tells_switch
