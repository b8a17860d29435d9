"""``HookConformance``: subclass it to test a hook plugin against ``vmferry.api.hooks``.

Give it one fixture, ``hook``, an instance made as vmferry makes it::

    class TestChat(HookConformance):
        @pytest.fixture
        def hook(self):
            return Chat()

It calls every hook that the plugin has, with the facts of each phase and outcome.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vmferry.api.guest import Guest
from vmferry.api.hooks import Decision, HookSpecs, Phase, Progress, RoundReport, Summary
from vmferry.errors import PluginError, VmferryError
from vmferry.plugins import Hooks
from vmferry.testing.checks import check, quote

__all__ = ["HookConformance"]

_MADE = "It is constructed once per process, without arguments."
_MARKED = "mark it with ``hookimpl``"
_TOLD = "*Observers* are told"
_DECIDES = "whether to go on; ``None`` leaves it to the next."
_VETO = "Raise ``Veto`` to stop the migration."
_GUEST = Guest(name="web1", hypervisor="process", memory=1 << 30)
_JOB = "job-of-the-kit"


def _rounds() -> tuple[RoundReport, ...]:
    """A full copy and a round beside the memory, the latter in no time at all."""
    first = RoundReport(number=0, scanned=1 << 30, sent=1 << 29, zeroes=1 << 28, seconds=9, dirty=4)
    last = RoundReport(number=1, scanned=4096, sent=4096, zeroes=0, seconds=0, dirty=0, memory=True)
    return first, last


def _summaries() -> Iterator[Summary]:
    """One that was never begun, and one for each role and outcome."""
    yield Summary(
        job=_JOB, role="source", guest="", outcome="failed", owner="source", error="no such guest"
    )
    for role in ("source", "destination"):
        for outcome, owner in (
            ("done", "destination"),
            ("failed", "source"),
            ("interrupted", "unknown"),
        ):
            yield Summary(
                job=_JOB,
                role=role,
                guest="web1",
                outcome=outcome,
                owner=owner,
                phases={"push-disk": 9.0},
                downtime=0.02 if owner == "destination" else None,
                rounds=_rounds() if role == "source" else (),
                counters={"reconnects": 1},
            )


def _calls() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each observer's name, and what it may be told."""
    for role in ("source", "destination"):
        for phase in Phase:
            yield "vmferry_phase_changed", {"job": _JOB, "role": role, "phase": phase}
    for report in _rounds():
        yield "vmferry_round_finished", {"job": _JOB, "report": report}
    for phase in Phase:
        for what, total in (("disk0", 1 << 30), ("memory", 0)):
            step = Progress(phase=phase, what=what, done=0, total=total, rate=0.0)
            yield "vmferry_progress", {"job": _JOB, "progress": step}
    yield "vmferry_event", {"job": _JOB, "name": "reconnected", "facts": {"running": True}}
    yield "vmferry_event", {"job": "", "name": "no-event-of-today", "facts": {}}
    for summary in _summaries():
        yield "vmferry_finished", {"summary": summary}


class HookConformance:
    """The contract of ``vmferry.api.hooks`` as tests. Override the fixture ``hook``."""

    @pytest.fixture
    def hook(self) -> object:
        """The plugin under test."""
        raise NotImplementedError("give a fixture `hook` that returns an instance of your class")

    def test_it_is_made_without_arguments(self, hook: object) -> None:
        """As vmferry makes it, which gives it nothing."""
        try:
            type(hook)()
        except Exception as error:
            pytest.fail(f"{type(hook).__name__}() raised {error!r}\n{quote(_MADE)}")

    def test_it_is_accepted(self, hook: object) -> None:
        """It has a hook; none is misspelled, async, or has a parameter that there is not."""
        try:
            Hooks().register(hook, "under-test")
        except PluginError as error:
            pytest.fail(f"{error}\n{quote(_MARKED)}")

    def test_observers_take_whatever_they_are_told(self, hook: object) -> None:
        """Of all phases, roles and outcomes, with and without figures."""
        for name, facts in _calls():
            if not hasattr(hook, name):
                continue
            try:
                _call(hook, name, facts)
            except Exception as error:
                pytest.fail(f"{name}({facts}) raised {error!r}\n{quote(_TOLD)}")

    def test_policies_decide_in_the_words_there_are(self, hook: object) -> None:
        """After no round, one and two."""
        if not hasattr(hook, "vmferry_decide"):
            pytest.skip(f"{type(hook).__name__} does not implement vmferry_decide")
        for count in range(3):
            facts = {"job": _JOB, "rounds": _rounds()[:count]}
            answer = _call(hook, "vmferry_decide", facts)
            right = answer is None or isinstance(answer, Decision)
            check(right, _DECIDES, f"after {count} rounds it answers {answer!r}")

    def test_a_switch_is_stopped_by_errors_people_understand(self, hook: object) -> None:
        """Whatever it thinks of the guest, it says so by a ``Veto`` or an error of vmferry's."""
        if not hasattr(hook, "vmferry_before_switch"):
            pytest.skip(f"{type(hook).__name__} does not implement vmferry_before_switch")
        try:
            _call(hook, "vmferry_before_switch", {"job": _JOB, "guest": _GUEST})
        except VmferryError as error:
            check(str(error), _VETO, f"{error!r} gives no reason")
        except Exception as error:
            pytest.fail(f"it raised {error!r}\n{quote(_VETO)}")


def _call(hook: object, name: str, facts: dict[str, Any]) -> Any:
    """Call one hook with the parameters that it wants."""
    assert hasattr(HookSpecs, name)
    function: Callable[..., Any] = getattr(hook, name)
    wanted = inspect.signature(function).parameters
    return function(**{key: value for key, value in facts.items() if key in wanted})
