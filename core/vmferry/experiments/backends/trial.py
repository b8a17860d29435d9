"""Guests of the trial plugins: both hosts are this machine, the agents are processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec

from vmferry.api import (
    Address,
    MoveLink,
    Options,
    Trial,
    TrialPlan,
    TrialStatus,
    TrialWish,
    Verdict,
)
from vmferry.errors import HypervisorError, InputError, PluginNotFound
from vmferry.experiments.backends.base import VMFERRY, Backend
from vmferry.experiments.backends.command import agent_words, source_words
from vmferry.experiments.children import Child, ChildFailed
from vmferry.experiments.facts import host_facts, versions
from vmferry.experiments.leftovers import run_folder
from vmferry.experiments.listening import Listener
from vmferry.experiments.nearest import known
from vmferry.experiments.results import PhaseTime, Result, RunSpec
from vmferry.experiments.sampling import sampled
from vmferry.experiments.shaping import Link, shaped
from vmferry.plugins import OptionTable, Registry, load, names
from vmferry.plugins.options import validate
from vmferry.wire.link import LIMITS

__all__ = ["TrialBackend", "TrialRun"]

_SECONDS = 8.0
_RATE = 200 << 20
_START = 60.0
_GOES_ON = 60.0
"""Seconds in which a guest that was moved must be heard of."""
_POLL = 0.05
_LINKED = ("tcp", "zeromq")
"""Transports over one TCP port, in front of which a shaped link can be put."""
_VERDICT = ("acknowledged", "checked", "lost", "wrong", "bad_reads", "bad_memory")


class TrialBackend(Backend):
    """Whatever trial plugin is installed under that name."""

    summary: ClassVar[str] = "guests of a trial plugin on this machine"

    def __init__(self, name: str) -> None:
        self.name = name
        self._trial = cast("Trial[Any]", load("trial", name))

    @property
    def methods(self) -> Mapping[str, str]:
        """vmferry, and what the trial itself can."""
        return {**super().methods, **self._trial.methods}

    def check(self, spec: RunSpec) -> tuple[str, ...]:
        """The trial, the plugins and the link must be able to do it."""
        self.check_move(spec)
        return self.plan(spec).notes

    def check_move(self, spec: RunSpec) -> None:
        """Raise ``InputError`` if the plugins and the link cannot do it, whatever the guest is."""
        self.check_method(spec)
        parameters = spec.parameters
        if parameters.method == VMFERRY:
            options = msgspec.json.encode(spec.options)
            _check_plugins(parameters.transport, parameters.tracker, parameters.volume, options)
        if Link.of(parameters).shaped and parameters.transport not in _LINKED:
            raise InputError(
                f"transport {parameters.transport!r}: a link can be shaped for "
                f"{' and '.join(_LINKED)} only"
            )

    def kind(self, spec: RunSpec) -> type[Trial[Any]]:
        """The trial that a run is done with."""
        return type(self._trial)

    def make(self, spec: RunSpec) -> Trial[Any]:
        """The trial of a run, not started."""
        options = _without(self.plan(spec).options, spec.options, self.name)
        return Registry(spec.options).trial(self.name, **options)

    def one_run(self, trial: Trial[Any], spec: RunSpec, folder: Path, result: Result) -> TrialRun:
        """What is done with the trial."""
        return TrialRun(trial, spec, folder, result)

    def plan(self, spec: RunSpec) -> TrialPlan:
        """How the trial is what a run wants; raises ``InputError`` if it cannot be."""
        parameters = spec.parameters
        wish = TrialWish(
            disk_size=parameters.disk_size,
            memory=parameters.memory,
            tracker=_chosen(parameters.tracker),
            volume=_chosen(parameters.volume),
            load=spec.load,
            seed=spec.seed,
        )
        plan = self.kind(spec).plan(wish)
        self.options(spec, plan)
        return plan

    def options(self, spec: RunSpec, plan: TrialPlan) -> Options:
        """The plan's options, and those that the experiment's file sets itself."""
        given = Registry(spec.options).options("trial", self.name)
        kind = self.kind(spec).options_type
        return validate(f"trial {self.name!r}", kind, {**plan.options, **given})

    def estimate(self, spec: RunSpec) -> float:
        """The disk at a moderate rate, or at the link's, and what is around it."""
        parameters = spec.parameters
        caps = [rate for rate in (parameters.bandwidth, parameters.limit, _RATE) if rate]
        moved = parameters.disk_size + parameters.memory
        return _SECONDS + spec.before + spec.after + 1.5 * moved / min(caps)

    async def run(self, spec: RunSpec, result: Result) -> None:
        """Start a guest, move it, let it run on, and hold its disk against its record."""
        result.notes += self.plan(spec).notes
        result.versions = versions()
        with run_folder(spec.folder) as folder:
            result.host = host_facts(folder)
            trial = self.make(spec)
            try:
                await self.one_run(trial, spec, folder, result).play()
            finally:
                await trial.close()


def _chosen(name: str) -> str:
    return "" if name == "auto" else name


def _without(options: Mapping[str, Any], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The plan's options that the experiment's file does not set itself."""
    own = Registry(given).options("trial", name)
    return {key: value for key, value in options.items() if key not in own}


@lru_cache(maxsize=1024)
def _check_plugins(transport: str, tracker: str, volume: str, options: bytes) -> None:
    """Whether there are such plugins with such options, and the transport can listen here."""
    for kind, name in (("transport", transport), ("tracker", tracker), ("volume", volume)):
        if name != "auto":
            known(kind, [name], names(kind))
    table = msgspec.json.decode(options)
    Registry(table).check()
    with ThreadPoolExecutor(1) as pool:  # a loop may run in this thread
        pool.submit(asyncio.run, _listen_once(transport, table)).result()


async def _listen_once(scheme: str, options: OptionTable) -> None:
    """Listen as the agent will, so that a transport that cannot says why."""
    if scheme in ("memory", "ssh"):
        raise InputError(f"transport {scheme!r} does not join two agents on one machine")
    transport = Registry(options).transport(scheme)
    try:
        listener = await transport.listen(Address.parse(f"{scheme}://127.0.0.1:0"), limits=LIMITS)
    except (InputError, PluginNotFound):
        raise
    except Exception as error:
        raise InputError(f"transport {scheme!r} cannot be used here: {error}") from error
    await listener.close()


class TrialRun:
    """One guest and its move."""

    def __init__(self, trial: Trial[Any], spec: RunSpec, folder: Path, result: Result) -> None:
        self.trial, self.spec, self.folder, self.result = trial, spec, folder, result

    async def play(self) -> None:
        """From the guest's start to the verdict."""
        guest = await self.trial.start(self.folder, self.spec.parameters.disk_size)
        async with self.watched():
            await asyncio.sleep(self.spec.before)
            if self.spec.parameters.method == VMFERRY:
                location = await self._migrate(guest)
            else:
                location = await self._move()
            await self._goes_on()
            await asyncio.sleep(self.spec.after)
        status = await self.trial.status()
        self._judge(await self.trial.verdict(location))
        _judge_errors(status)

    def watched(self) -> AbstractAsyncContextManager[None]:
        """What notes meanwhile how the guest is doing."""
        return sampled(self.trial.status, self.result, self.spec.sample)

    async def _migrate(self, guest: str) -> str:
        """Have two agents move it; returns where its disk is."""
        listener = Listener(self.result)
        try:
            await self._agents(guest, listener)
        finally:
            listener.conclude()
        return str(await asyncio.to_thread(_arrived_disk, self.folder / "pool"))

    async def _agents(self, guest: str, listener: Listener) -> None:
        spec, folder = self.spec, self.folder
        serve = agent_words(spec, folder, self.trial.host_options("destination"))
        async with (
            Child.migrate(serve, listener.destination, "the destination's agent") as agent,
            shaped(Link.of(spec.parameters), spec.seed) as link,
        ):
            said = await agent.until(lambda event: event.get("name") == "listening", _START)
            url = await _through(said["facts"]["address"], link)
            words = source_words(spec, guest, url, folder, self.trial.host_options("source"))
            async with Child.migrate(words, listener.source, "the source") as source:
                await source.succeeded()
            try:
                async with asyncio.timeout(_START):
                    await agent.succeeded()
            except TimeoutError:
                raise ChildFailed("the destination's agent does not end") from None

    async def _goes_on(self) -> None:
        """Hear of the guest, however it was moved: its word for its downtime if none is known."""
        gap = await self._gap()
        if self.result.figures.get("downtime_guest") is None:
            self.result.figures["downtime_guest"] = gap

    async def _gap(self) -> float | None:
        """How long it stood still; raises ``HypervisorError`` if it could tell and does not."""
        if not self.trial.tells_switch:
            return (await self.trial.status()).switch_gap
        try:
            async with asyncio.timeout(_GOES_ON):
                while True:
                    if (gap := (await self.trial.status()).switch_gap) is not None:
                        return gap
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise HypervisorError(
                f"the guest was moved, and in {_GOES_ON:g} s nothing is heard of it"
            ) from None

    async def _move(self) -> str:
        """Have the trial move it; returns where its disk is."""
        parameters, result = self.spec.parameters, self.result
        async with shaped(Link.of(parameters), self.spec.seed) as link:
            result.begun = time.time()
            moved = await self.trial.move(
                parameters.method, MoveLink(parameters.bandwidth, link.through)
            )
        begin = 0.0
        for name, seconds in moved.phases.items():
            result.phases.append(PhaseTime(role="source", name=name, begin=begin, seconds=seconds))
            begin += seconds
        result.figures |= {
            "total": begin,
            "downtime_source": moved.downtime,
            "downtime_guest": moved.guest_downtime,
            "sent": moved.sent,
            "pending": moved.pending,
        }
        return moved.location

    def _judge(self, verdict: Verdict) -> None:
        """Note the verdict; raises ``HypervisorError`` if anything is amiss."""
        self.result.figures |= {name: getattr(verdict, name) for name in _VERDICT}
        amiss = [
            f"{getattr(verdict, name)} {name}" for name in _VERDICT[2:] if getattr(verdict, name)
        ]
        if amiss:
            raise HypervisorError(f"data was lost or is wrong: {', '.join(amiss)}")


def _judge_errors(status: TrialStatus) -> None:
    """Raise ``HypervisorError`` if the guest was given I/O errors."""
    if status.errors:
        raise HypervisorError(f"the guest was given {status.errors} I/O errors")


def _arrived_disk(pool: Path) -> Path:
    found = sorted(path for path in pool.rglob("*") if path.is_file() and "disk0" in path.name)
    if not found:
        raise HypervisorError(f"no disk arrived in {pool}")
    return found[0]


async def _through(url: str, link: Any) -> str:
    address = Address.parse(url)
    return url.replace(f":{address.port}", f":{await link.through(address.port)}")
