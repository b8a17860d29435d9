"""What observers hear of a phase, however short it is."""

from __future__ import annotations

from vmferry.api.hooks import Phase, Progress, hookimpl
from vmferry.engine.meter import Meter
from vmferry.plugins import Hooks


class Listener:
    def __init__(self) -> None:
        self.heard: list[Progress | Phase] = []

    @hookimpl
    def vmferry_progress(self, job: str, progress: Progress) -> None:
        self.heard.append(progress)

    @hookimpl
    def vmferry_phase_changed(self, job: str, role: str, phase: Phase) -> None:
        self.heard.append(phase)


async def test_a_phase_without_a_tick_is_told_of_at_its_end() -> None:
    listener, hooks = Listener(), Hooks()
    hooks.register(listener, "listener")
    meter = Meter("job", "source", hooks)
    meter.enter(Phase.PUSH_DISK)
    meter.gauge("disk", 100, 0)
    meter.add("disk", 100)
    meter.enter(Phase.STOP)
    meter.enter(Phase.PULL)
    first, told, stop, pull = listener.heard
    assert (first, stop, pull) == (Phase.PUSH_DISK, Phase.STOP, Phase.PULL)
    assert isinstance(told, Progress)
    assert (told.phase, told.what, told.done, told.total) == (Phase.PUSH_DISK, "disk", 100, 100)
