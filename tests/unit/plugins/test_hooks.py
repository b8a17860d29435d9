from __future__ import annotations

import logging
from typing import Any

import pytest

from vmferry.api import (
    Decision,
    Guest,
    HookSpecs,
    Phase,
    Progress,
    RoundReport,
    Summary,
    hookimpl,
)
from vmferry.errors import PluginError, Veto
from vmferry.plugins import DISABLE_EXTERNAL, HOOK, Hooks, available, describe, temporary

REPORT = RoundReport(number=0, scanned=1, sent=1, zeroes=0, seconds=1.0, dirty=0)
PROGRESS = Progress(phase=Phase.PULL, what="disk0", done=1, total=2, rate=1.0)
SUMMARY = Summary(job="j", role="source", guest="g", outcome="done", owner="destination")
GUEST = Guest(name="g", hypervisor="process")


class Recorder:
    """Records every observer call.

    Second line.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @hookimpl
    def vmferry_phase_changed(self, job: str, role: str, phase: Phase) -> None:
        self.calls.append(("phase", job, role, phase))

    @hookimpl
    def vmferry_round_finished(self, report: RoundReport) -> None:
        self.calls.append(("round", report))

    @hookimpl
    def vmferry_progress(self, progress: Progress) -> None:
        self.calls.append(("progress", progress))

    @hookimpl
    def vmferry_event(self, job: str, name: str, facts: dict[str, Any]) -> None:
        self.calls.append(("event", job, name, facts))

    @hookimpl
    def vmferry_finished(self, summary: Summary) -> None:
        self.calls.append(("finished", summary))


class Broken:
    """Raises in every observer."""

    @hookimpl
    def vmferry_phase_changed(self) -> None:
        raise RuntimeError("no phase for you")

    @hookimpl
    def vmferry_finished(self) -> None:
        raise RuntimeError("never finished")


def tell_all(hooks: Hooks) -> None:
    hooks.phase_changed("j", "source", Phase.PULL)
    hooks.round_finished("j", REPORT)
    hooks.progress("j", PROGRESS)
    hooks.event("j", "reconnect", attempt=3)
    hooks.finished(SUMMARY)


def test_every_hook_has_a_method_and_reaches_every_observer() -> None:
    hooks, first, second = Hooks(), Recorder(), Recorder()
    hooks.register(first, "first")
    hooks.register(second, "second")
    tell_all(hooks)
    assert (
        first.calls
        == second.calls
        == [
            ("phase", "j", "source", Phase.PULL),
            ("round", REPORT),
            ("progress", PROGRESS),
            ("event", "j", "reconnect", {"attempt": 3}),
            ("finished", SUMMARY),
        ]
    )
    specs = {name.removeprefix("vmferry_") for name in vars(HookSpecs) if name[0] != "_"}
    assert all(callable(getattr(Hooks, name)) for name in specs)


@pytest.mark.parametrize("order", [("broken", "good"), ("good", "broken")])
def test_an_observer_that_raises_is_logged_and_hides_nothing(
    order: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    hooks, recorder = Hooks(), Recorder()
    plugins = {"broken": Broken(), "good": recorder}
    for name in order:
        hooks.register(plugins[name], name)
    tell_all(hooks)
    assert [call[0] for call in recorder.calls][0::4] == ["phase", "finished"]
    assert "'broken' failed in vmferry_phase_changed" in caplog.text
    assert "never finished" in caplog.text


def test_an_observer_that_raises_again_is_not_logged_at_length_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hooks = Hooks()
    hooks.register(Broken(), "broken")
    for _ in range(5):
        hooks.phase_changed("j", "source", Phase.PULL)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_decide_takes_the_first_opinion_and_no_other_answer() -> None:
    class Says:
        def __init__(self, answer: object) -> None:
            self.answer = answer

        @hookimpl
        def vmferry_decide(self, rounds: tuple[RoundReport, ...]) -> object:
            return self.answer

    hooks = Hooks()
    assert hooks.decide("j", ()) is None
    hooks.register(Says(Decision.CONTINUE), "early")
    hooks.register(Says(None), "none")
    assert hooks.decide("j", (REPORT,)) is Decision.CONTINUE
    hooks.register(Says(Decision.SWITCH), "late")
    assert hooks.decide("j", (REPORT,)) is Decision.SWITCH
    hooks.register(Says("switch!"), "wrong")
    with pytest.raises(PluginError, match="switch!"):
        hooks.decide("j", (REPORT,))


def test_policies_let_exceptions_through(caplog: pytest.LogCaptureFixture) -> None:
    class Vetoes:
        @hookimpl
        def vmferry_before_switch(self, guest: Guest) -> None:
            raise Veto(f"not {guest.name}")

        @hookimpl
        def vmferry_decide(self) -> None:
            raise ZeroDivisionError

    hooks = Hooks()
    hooks.register(Vetoes(), "vetoes")
    with pytest.raises(Veto, match="not g"):
        hooks.before_switch("j", GUEST)
    with pytest.raises(ZeroDivisionError):
        hooks.decide("j", ())
    assert "'vetoes' stops the job in vmferry_before_switch: Veto: not g" in caplog.text
    assert "'vetoes' stops the job in vmferry_decide: ZeroDivisionError" in caplog.text


def test_a_policy_is_asked_before_those_registered_earlier() -> None:
    asked = []

    class Asks:
        def __init__(self, name: str) -> None:
            self.name = name

        @hookimpl
        def vmferry_before_switch(self) -> None:
            asked.append(self.name)

    hooks = Hooks()
    for name in ("first", "second", "third"):
        hooks.register(Asks(name), name)
    hooks.before_switch("j", GUEST)
    assert asked == ["third", "second", "first"]


class Misspelled:
    @hookimpl
    def vmferry_finnished(self, summary: Summary) -> None: ...


class WrongParameter:
    @hookimpl
    def vmferry_finished(self, result: Summary) -> None: ...


class Async:
    @hookimpl
    async def vmferry_finished(self, summary: Summary) -> None: ...


class Unmarked:
    def vmferry_finished(self, summary: Summary) -> None: ...


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (Misspelled(), "unknown hook 'vmferry_finnished'"),
        (WrongParameter(), "'result'"),
        (Async(), "not async"),
        (Unmarked(), "implements no hook"),
        (Recorder, "register an instance"),
    ],
)
def test_a_broken_hook_is_refused_and_not_kept(plugin: object, message: str) -> None:
    hooks = Hooks()
    with pytest.raises(PluginError, match=f"'mine'.*{message}|{message}"):
        hooks.register(plugin, "mine")
    assert hooks.names() == []
    hooks.register(Recorder(), "mine")
    assert hooks.names() == ["mine"]


def test_the_same_plugin_or_name_twice_is_refused_and_the_first_kept() -> None:
    hooks, recorder = Hooks(), Recorder()
    hooks.register(recorder, "mine")
    for plugin, name in ((recorder, "other"), (Recorder(), "mine")):
        with pytest.raises(PluginError, match="registered already"):
            hooks.register(plugin, name)
    hooks.finished(SUMMARY)
    assert len(recorder.calls) == 1
    hooks.unregister("mine")
    hooks.unregister("mine")
    assert hooks.names() == []


def test_load_instantiates_and_isolates(caplog: pytest.LogCaptureFixture) -> None:
    class Exploding:
        def __init__(self) -> None:
            raise OSError("no socket")

    with (
        temporary(HOOK, "recorder", Recorder),
        temporary(HOOK, "exploding", Exploding),
        temporary(HOOK, "misspelled", Misspelled),
    ):
        hooks = Hooks()
        assert "recorder" in hooks.load()
        infos = {info.name: info for info in available(HOOK)}
        assert describe(HOOK, "recorder") == []
    assert "recorder" in hooks.names()
    assert not {"exploding", "misspelled"} & set(hooks.names())
    assert "no socket" in caplog.text
    assert "vmferry_finnished" in caplog.text
    assert "OSError: no socket" in infos["exploding"].error
    assert infos["recorder"].capabilities["finished"] == "observer"
    assert infos["recorder"].summary == "Records every observer call."


def test_hooks_of_other_distributions_can_be_kept_out(
    install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from vmferry.api import hookimpl\n"
        "class Chat:\n"
        "    @hookimpl\n"
        "    def vmferry_finished(self): ...\n"
    )
    install("chatter", {"vmferry.hooks": {"chat": "chat_a:Chat"}}, chat_a=source)
    assert "chat" in Hooks().load()
    monkeypatch.setenv(DISABLE_EXTERNAL, "1")
    assert "chat" not in Hooks().load()
    monkeypatch.setenv(DISABLE_EXTERNAL, "0")
    assert "chat" in Hooks().load()


def test_two_distributions_with_one_hook_name_are_both_left_out(
    install: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for dist in ("chatter", "gossip"):
        install(dist, {"vmferry.hooks": {"chat": "chat_b:Chat"}})
    assert "chat" not in Hooks().load()
    assert "chatter 1.0 and gossip 1.0" in caplog.text
