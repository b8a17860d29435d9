"""Guests in QEMU: those of the trial plugin, and for fio those of the laboratory: Linux."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from vmferry.api import Trial, TrialPlan
from vmferry.errors import InputError, VmferryError
from vmferry.experiments.backends.fio import failure, judge_fio, note_fio
from vmferry.experiments.backends.laboratory import lab_of, lab_options
from vmferry.experiments.backends.trial import TrialBackend, TrialRun
from vmferry.experiments.fiojobs import job_notes
from vmferry.experiments.results import Result, RunSpec

__all__ = ["QemuBackend"]

_SECONDS = 75.0
"""For the guest to boot, and until the pass ends that fio is at when it has been moved."""


class QemuBackend(TrialBackend):
    """Two QEMUs on this machine."""

    runs_fio = True

    def __init__(self) -> None:
        super().__init__("qemu")

    def check(self, spec: RunSpec) -> tuple[str, ...]:
        """As for any trial; with fio, what the laboratory's guest can be.

        Nothing of the laboratory need be here: it may be on a worker's machine.
        """
        if not spec.load.fio:
            return super().check(spec)
        self.check_move(spec)
        lab_options(spec)
        try:
            self.kind(spec)
        except InputError:
            return job_notes(spec.load.fio)
        return self.plan(spec).notes

    def plan(self, spec: RunSpec) -> TrialPlan:
        """With fio, what the job does not show is noted."""
        plan = super().plan(spec)
        if not spec.load.fio:
            return plan
        return msgspec.structs.replace(plan, notes=(*plan.notes, *job_notes(spec.load.fio)))

    def ready(self, spec: RunSpec) -> None:
        """With fio, a guest must have been built."""
        if spec.load.fio:
            _guest_files(spec)

    def estimate(self, spec: RunSpec) -> float:
        """With fio, also what the guest takes to boot and to end its pass."""
        return super().estimate(spec) + (_SECONDS if spec.load.fio else 0.0)

    def kind(self, spec: RunSpec) -> type[Trial[Any]]:
        """The laboratory's if there is a job of fio."""
        if not spec.load.fio:
            return super().kind(spec)
        lab_of(spec)
        from vmferry_lab.fiotrial import FioTrial  # type: ignore[import-untyped, unused-ignore]

        return FioTrial

    def make(self, spec: RunSpec) -> Trial[Any]:
        """The laboratory's if there is a job of fio."""
        if not spec.load.fio:
            return super().make(spec)
        kind: Any = self.kind(spec)
        options = self.options(spec, self.plan(spec))
        trial: Trial[Any] = kind(options, _guest_files(spec), spec.load.fio, spec.seed)
        return trial

    def one_run(self, trial: Trial[Any], spec: RunSpec, folder: Path, result: Result) -> TrialRun:
        """With fio, its reports are heard."""
        return (_FioRun if spec.load.fio else TrialRun)(trial, spec, folder, result)


def _guest_files(spec: RunSpec) -> Any:
    try:
        return lab_of(spec).qemu_guest()
    except VmferryError as error:
        raise InputError(str(error)) from None


class _FioRun(TrialRun):
    """A guest that runs fio, and its move."""

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Afterwards wait for the end of the pass that is under way: what it finds was moved."""
        trial: Any = self.trial
        try:
            yield
            if not failure(await trial.fio()):  # it would not go on there
                await trial.fio_pass(self.spec.timeout)
        finally:
            reports = await trial.fio()
            if self.result.begun:
                note_fio(self.result, reports, trial.booted)
        judge_fio(reports, trial.fio_said())
