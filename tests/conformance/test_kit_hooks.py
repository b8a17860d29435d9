"""The hook kit fails hook plugins that are broken on purpose, each by the test made for it."""

from __future__ import annotations

from typing import Any

import pytest

from vmferry.api import Decision, hookimpl
from vmferry.errors import Veto
from vmferry.testing.hook import HookConformance


class Sound:
    @hookimpl
    def vmferry_finished(self, summary: Any) -> None:
        str(summary.downtime)

    @hookimpl
    def vmferry_decide(self, rounds: Any) -> Decision | None:
        return Decision.SWITCH if len(rounds) > 1 else None

    @hookimpl
    def vmferry_before_switch(self, guest: Any) -> None:
        raise Veto(f"not {guest.name}")


class WantsArguments(Sound):
    def __init__(self, place: str) -> None:
        self.place = place


class Misspelled(Sound):
    @hookimpl
    def vmferry_finnished(self) -> None: ...


class Async(Sound):
    @hookimpl
    async def vmferry_event(self) -> None: ...


class CountsOnADowntime(Sound):
    @hookimpl
    def vmferry_finished(self, summary: Any) -> None:
        format(summary.downtime, ".3f")


class CountsOnATotal(Sound):
    @hookimpl
    def vmferry_progress(self, progress: Any) -> None:
        progress.done / progress.total


class AnswersInText(Sound):
    @hookimpl
    def vmferry_decide(self, rounds: Any) -> Any:
        return "switch" if rounds else None


class FailsForNoReason(Sound):
    @hookimpl
    def vmferry_before_switch(self, guest: Any) -> None:
        raise KeyError(guest.name)


FAULTS = [
    (WantsArguments("here"), "test_it_is_made_without_arguments"),
    (Misspelled(), "test_it_is_accepted"),
    (Async(), "test_it_is_accepted"),
    (CountsOnADowntime(), "test_observers_take_whatever_they_are_told"),
    (CountsOnATotal(), "test_observers_take_whatever_they_are_told"),
    (AnswersInText(), "test_policies_decide_in_the_words_there_are"),
    (FailsForNoReason(), "test_a_switch_is_stopped_by_errors_people_understand"),
]


@pytest.mark.mutant
@pytest.mark.parametrize(("hook", "test"), FAULTS, ids=lambda v: type(v).__name__)
def test_fault_is_found(hook: object, test: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=r'vmferry\.api\.\w+ says: "'):
        getattr(HookConformance(), test)(hook)


@pytest.mark.parametrize("test", sorted({test for _, test in FAULTS}))
def test_sound_hook_passes(test: str) -> None:
    getattr(HookConformance(), test)(Sound())


def test_what_a_hook_does_not_implement_is_skipped_aloud() -> None:
    with pytest.raises(pytest.skip.Exception, match="object does not implement vmferry_decide"):
        HookConformance().test_policies_decide_in_the_words_there_are(object())
