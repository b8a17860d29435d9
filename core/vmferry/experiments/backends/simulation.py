"""The engine itself, both its ends, on simulated hosts and virtual time: small disks only."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import msgspec

from vmferry.api import Load, Summary
from vmferry.engine.settings import Settings
from vmferry.errors import HypervisorError, InputError
from vmferry.experiments.backends.base import Backend
from vmferry.experiments.facts import versions
from vmferry.experiments.results import PhaseTime, Result, Round, RunSpec
from vmferry.simulation.lanes import LinkParameters
from vmferry.simulation.outcome import Outcome
from vmferry.simulation.runner import simulate
from vmferry.simulation.scenario import Scenario
from vmferry.simulation.workload import Workload
from vmferry.simulation.world import WorldParameters
from vmferry.units import MIB

__all__ = ["SimulationBackend"]

_LARGEST = 64 * MIB
_PAGE = 4096
_BLOCK = 4096
_WORKERS = 4
_FAST = 10e9 / 8
_NEAR = 50e-6
_EVER = 1 << 60
_SPEED = 2 * MIB
"""Bytes of disk and memory that a second simulates."""


class SimulationBackend(Backend):
    """``vmferry.simulation`` as a hypervisor of the matrix."""

    name = "simulation"
    summary: ClassVar[str] = (
        "The engine's own code ran on virtual time, with simulated hosts, disks, network and "
        "guest. What the processor does takes no time there; a disk request takes up to 0.4 ms, a "
        "flush up to 2 ms, suspending and starting a guest up to 5 ms each."
    )
    real = False

    def check(self, spec: RunSpec) -> tuple[str, ...]:
        """Small disks, and a link without loss."""
        self.check_method(spec)
        parameters = spec.parameters
        self.refuse(spec, {"tracker": "auto", "transport": "tcp", "volume": "auto"}, "is simulated")
        self.refuse(spec, {"loss": 0.0}, "the simulated link loses nothing")
        for axis in ("disk_size", "memory"):
            if getattr(parameters, axis) > _LARGEST:
                raise InputError(
                    f"{axis}: the simulation holds every byte, 64 MiB at most; hypervisor 'model' "
                    "reckons with larger ones"
                )
        if parameters.disk_size % _BLOCK:
            raise InputError(f"disk_size {parameters.disk_size} is not a multiple of {_BLOCK}")
        return _notes(spec.load)

    def estimate(self, spec: RunSpec) -> float:
        """By the size of disk and memory."""
        return 1 + (spec.parameters.disk_size + spec.parameters.memory) / _SPEED

    async def run(self, spec: RunSpec, result: Result) -> None:
        """Simulate in a thread."""
        result.notes += _notes(spec.load)
        result.versions = versions()
        outcome = await asyncio.to_thread(simulate, spec.seed, scenario_of(spec))
        _note(outcome, result)
        if outcome.violations:
            raise HypervisorError(f"the simulation found a fault: {outcome.violations[0]}")
        if outcome.summary is None:
            raise HypervisorError(f"the simulated migration failed: {outcome.error!r}")


def _notes(load: Load) -> tuple[str, ...]:
    if load.trace:
        raise InputError("the simulated guest replays no traces")
    if load.pattern == "sequential" and not load.idle:
        return ("the simulated guest's requests go to random places, not one after the other",)
    return ()


def scenario_of(spec: RunSpec) -> Scenario:
    """The run as the simulation has it."""
    parameters = spec.parameters
    return Scenario(
        name="experiment",
        world=WorldParameters(
            disk_size=parameters.disk_size,
            filled=1.0,
            pages=parameters.memory // _PAGE,
            page_size=_PAGE,
            link=LinkParameters(
                latency=parameters.latency or _NEAR,
                jitter=0.0,
                bandwidth=float(parameters.bandwidth or _FAST),
            ),
            workload=_workload(spec.load),
        ),
        settings=Settings(
            block_size=parameters.block_size,
            piece=max(MIB, parameters.block_size),
            compression=parameters.compression,
            bandwidth=parameters.limit,
        ),
        policy=spec.policy,
        lead=max(0.02, spec.before),
    )


def _workload(load: Load) -> Workload:
    rate = load.write_rate + load.read_rate
    reads = round(100 * load.read_ratio)
    usual = {"partial": 0, "zero": 0, "discard": 0, "flush": 1, "eager": _EVER}
    return Workload(
        workers=0 if load.idle else _WORKERS,
        think=0.0 if load.full_speed else _WORKERS / rate if rate else 1.0,
        largest=max(1, load.request // _BLOCK),
        write=100 - reads,
        read=reads,
        hot=0.9 if load.pattern == "hotspot" else 0.0,
        pages=round(load.memory_rate / rate) if rate else 0,
        **usual,
    )


def _note(outcome: Outcome, result: Result) -> None:
    """What both sides' summaries say."""
    summary, there = outcome.summary, next(iter(outcome.arrivals), None)
    if summary is None:
        return
    for role, one in (("source", summary), ("destination", there)):
        result.phases += _phases(role, one)
    result.rounds = [Round(**msgspec.structs.asdict(one)) for one in summary.rounds]
    result.figures |= {
        "total": sum(summary.phases.values()),
        "downtime_source": summary.downtime,
        "downtime_guest": summary.guest_downtime,
        "downtime_destination": there.downtime if there else None,
        "sent": summary.sent,
        "bitmap_bytes": summary.bitmap_bytes,
        "pending": summary.pending,
        "on_demand": summary.on_demand,
    }


def _phases(role: str, summary: Summary | None) -> list[PhaseTime]:
    found, begin = [], 0.0
    for name, seconds in (summary.phases if summary else {}).items():
        found.append(PhaseTime(role=role, name=str(name), begin=begin, seconds=seconds))
        begin += seconds
    return found
