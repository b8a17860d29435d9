"""Guests between the laboratory's two Xen hosts: by vmferry, and by unmodified ``xl migrate``."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, ClassVar

from vmferry.api import Load
from vmferry.engine.outlast import outlast
from vmferry.errors import HypervisorError, InputError
from vmferry.experiments.backends.base import Backend
from vmferry.experiments.backends.command import migration_words, plugin_words
from vmferry.experiments.backends.fio import failure, judge_fio, note_fio
from vmferry.experiments.backends.laboratory import lab_options
from vmferry.experiments.backends.xen_baselines import BASELINES, Baseline, Watch
from vmferry.experiments.backends.xen_lab import check_lab, open_lab, shaped_hosts
from vmferry.experiments.facts import versions
from vmferry.experiments.fiojobs import job_notes
from vmferry.experiments.listening import Listener
from vmferry.experiments.results import Event, Result, RunSpec
from vmferry.units import MIB

__all__ = ["XenBackend"]

_SECONDS = 300.0
_RATE = 4 * MIB
_FIO_PASS = 60.0
"""Seconds until the pass ends that fio is at when the guest has been moved; jobs differ."""
_PARTS = {"lost": "bad_now", "bad_reads": "bad", "checked": "sectors", "acknowledged": "writes"}


class XenBackend(Backend):
    """Two real Xen hosts under QEMU's emulator; see ``lab/``."""

    name = "xen"
    summary: ClassVar[str] = "guests between the laboratory's two Xen hosts"
    runs_fio = True

    @property
    def methods(self) -> Mapping[str, str]:
        """Vmferry, and Xen's own on disks that others see to."""
        return {**super().methods, **{name: one.summary for name, one in BASELINES.items()}}

    def irrelevant(self, method: str) -> frozenset[str]:
        """A laboratory's guest has the memory that it has; its agents speak TCP."""
        return super().irrelevant(method) | {"memory", "transport", "volume"}

    def check(self, spec: RunSpec) -> tuple[str, ...]:
        """What the laboratory's guests can do, and the laboratory itself if it is up."""
        self.check_method(spec)
        check_lab(spec)
        if spec.load.trace:
            raise InputError("the laboratory's guest replays no traces")
        if spec.parameters.disk_size % MIB:
            raise InputError(f"disk_size {spec.parameters.disk_size}: use whole MiB")
        if spec.load.fio:
            return job_notes(spec.load.fio)
        if spec.load.request != 4096 or spec.load.pattern == "sequential":
            return ("the laboratory's guest writes 4 KiB at random places",)
        return ()

    def ready(self, spec: RunSpec) -> None:
        """A laboratory must be up."""
        open_lab(spec)

    def estimate(self, spec: RunSpec) -> float:
        """Minutes: each host is emulated."""
        fio = _FIO_PASS if spec.load.fio else 0.0
        return _SECONDS + spec.before + spec.after + fio + 3 * spec.parameters.disk_size / _RATE

    async def run(self, spec: RunSpec, result: Result) -> None:
        """In a thread: the laboratory's interface waits. Cancelled, it ends when the thread has."""
        result.notes += self.check(spec)
        result.versions = versions()
        run = _XenRun(open_lab(spec), spec, result)
        thread = asyncio.create_task(asyncio.to_thread(run.play))
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            run.stopped.set()
            with suppress(Exception):  # why it ended is of no interest any more
                await outlast(thread)  # the next run needs the hosts that it still drives
            raise


class _XenRun:
    """One guest and its move, step by step; blocks.

    Attributes:
        stopped: set by another thread, ends it before the next step.

    """

    def __init__(self, lab: Any, spec: RunSpec, result: Result) -> None:
        self.lab, self.spec, self.result = lab, spec, result
        self.here, self.there = lab.xen_hosts()[:2]
        self.booted = 0.0
        self.stopped = threading.Event()

    def play(self) -> None:
        """From the guest's start to the verdict; everything is removed at the end."""
        self.result.host = {"kernel": self.here.run("uname -r").strip(), "emulated": True}
        ferry, interface = self._ferry(), lab_options(self.spec).interface
        with self._alone(interface), ExitStack() as leftovers:
            baseline = self._baseline(ferry.name)
            if baseline is not None:
                leftovers.callback(baseline.remove_disks)
            leftovers.callback(ferry.close)  # before its disks are removed
            with shaped_hosts((self.here, self.there), self.spec.parameters, interface):
                if baseline is None:
                    self._by_vmferry(ferry)
                else:
                    self._by_xl(ferry, baseline)
            self._pause(self.spec.after)
            if self.spec.load.fio:
                self._judge_fio(ferry.name)
                self._check()
            self._judge(self.there.guests.verdict(ferry.name))

    def _check(self) -> None:
        if self.stopped.is_set():
            raise HypervisorError("the run was stopped")

    def _pause(self, seconds: float) -> None:
        self.stopped.wait(seconds)
        self._check()

    def _alone(self, interface: str) -> AbstractContextManager[None]:
        from vmferry_lab.leftovers import (  # type: ignore[import-untyped, unused-ignore]
            one_migration,
        )

        alone: AbstractContextManager[None] = one_migration(self.lab, interface)
        return alone

    def _baseline(self, name: str) -> Baseline | None:
        kind = BASELINES.get(self.spec.parameters.method)
        return None if kind is None else kind(self.lab, name, self._disks(name), self.spec.timeout)

    def _ferry(self) -> Any:
        from vmferry_lab.ferry import Ferry  # type: ignore[import-untyped, unused-ignore]

        return Ferry(self.here, self.there)

    def _by_vmferry(self, ferry: Any) -> None:
        spec = self.spec
        listener = Listener(self.result)
        tracker = spec.parameters.tracker
        ferry.serve("--once", "--json", *plugin_words(spec, "volume"))
        self._check()
        ferry.guest(size=spec.parameters.disk_size, **writer_of(spec))
        ferry.listening()
        self._settle(ferry)
        began = time.monotonic()
        ferry.run("blkback" if tracker == "auto" else tracker, *_words(spec))
        code = ferry.code()
        seconds = time.monotonic() - began
        _hear(ferry.log(self.here), listener.source)
        if code == 0:
            ferry.code(self.there)
        _hear(ferry.log(self.there), listener.destination)
        listener.conclude()
        # by the clock that times the baselines; the total is by that of an emulated host
        facts = {"seconds": round(seconds, 3)}
        self.result.events.append(
            Event(time=seconds, role="source", name="command-ended", facts=facts)
        )
        if code:
            raise HypervisorError(f"migrate run ended with code {code}: {_last(ferry, self.here)}")

    def _settle(self, ferry: Any) -> None:
        """Let the guest run, and forget how long it stood still until now."""
        self._pause(self.spec.before)
        ferry.set_clocks()
        if self.spec.load.fio:
            self.booted = self.here.guests.booted(ferry.name)
        self.here.guests.order(ferry.name, "reset")

    def _by_xl(self, ferry: Any, baseline: Baseline) -> None:
        ferry.start(baseline.make_disks(), **writer_of(self.spec))
        self._settle(ferry)
        before = self._transmitted()
        watch = Watch(self.result, self._check)
        baseline.move(watch)
        self.result.figures |= {"total": watch.total, "pending": 0}
        self.result.figures["sent"] = self._transmitted() - before
        self.result.notes.append("sent is all that the source put on its network, headers too")

    def _transmitted(self) -> int:
        """Bytes that the source has put on the hosts' network."""
        interface = lab_options(self.spec).interface
        return int(self.here.run(f"cat /sys/class/net/{interface}/statistics/tx_bytes"))

    def _disks(self, name: str) -> dict[str, int]:
        """The guest's disks by name, with their sizes."""
        disks = {name: self.spec.parameters.disk_size}
        if self.spec.load.fio:
            from vmferry_lab.guest import WRITER_DISK

            disks[f"{name}-writer"] = WRITER_DISK
        return disks

    def _judge_fio(self, name: str) -> None:
        """Wait for the end of the pass that is under way: what it finds then was moved."""
        here, there = self.here.guests, self.there.guests
        reports, said = here.fio(name), here.fio_said(name)
        if not failure(reports):  # it would not go on there
            there.fio_pass(name, timeout=self.spec.timeout)
            reports, said = reports + there.fio(name), said + there.fio_said(name)
        note_fio(self.result, reports, self.booted)
        judge_fio(reports, said)

    def _judge(self, verdict: Any) -> None:
        figures = {name: getattr(verdict, part) for name, part in _PARTS.items()}
        self.result.figures |= figures | {"downtime_guest": verdict.gap}
        if not verdict.good:
            raise HypervisorError(
                f"data was lost or is wrong: {verdict.bad_now} sectors now, {verdict.bad} ever, "
                f"{verdict.errors} errors"
            )


def _words(spec: RunSpec) -> list[str]:
    words = migration_words(spec)
    if "--tracker" in words:  # the laboratory names it itself
        place = words.index("--tracker")
        del words[place : place + 2]
    return [*words, *plugin_words(spec, "hypervisor", "tracker", "volume")]


def writer_of(spec: RunSpec) -> dict[str, str | int]:
    """The options of the laboratory guest's writer: see ``docs/lab.md``."""
    load: Load = spec.load
    if load.fio:  # on a small disk of its own, beside fio
        from vmferry_lab.guest import BESIDE_FIO

        return {"fio": load.fio, **BESIDE_FIO, "seed": spec.seed}
    megabytes = spec.parameters.disk_size // MIB
    rate = "idle" if load.idle else "max" if load.full_speed else max(1, round(load.write_rate))
    options: dict[str, str | int] = {
        "rate": rate,
        "seed": spec.seed,
        "prefill": max(1, int(megabytes * load.span)),
        "flush": 100,
        "verify": max(1, round(load.write_rate / load.read_rate)) if load.read_rate else 0,
    }
    if load.pattern == "hotspot":
        options["hot"] = max(1, megabytes // 10)
    return options


def _hear(log: str, listen: Any) -> None:
    """Pass on the events that ``migrate --json`` has written between other lines."""
    for line in log.splitlines():
        if line.startswith("{"):
            try:
                listen(json.loads(line))
            except (ValueError, KeyError):
                continue


def _last(ferry: Any, host: Any) -> str:
    lines = [line for line in ferry.log(host).splitlines() if line.startswith("migrate:")]
    return lines[-1] if lines else "it says nothing"
