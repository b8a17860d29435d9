"""Arithmetic in place of a migration: for sizes and links that no machine here has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from vmferry.api import Decision, RoundReport
from vmferry.engine.policy import DefaultPolicy
from vmferry.errors import HypervisorError, InputError
from vmferry.experiments.backends.assumptions import Assumptions
from vmferry.experiments.backends.base import VMFERRY, Backend
from vmferry.experiments.backends.dirtying import Dirtying
from vmferry.experiments.facts import versions
from vmferry.experiments.results import PhaseTime, Result, Round, RunSpec
from vmferry.experiments.shaping import Link
from vmferry.plugins.options import validate

__all__ = ["ModelBackend"]

_COLD, _CONVERGE = "cold", "converge-first"
_MOST_ROUNDS = 200
_SETTLE = 6
"""Rounds beside the memory after which their length is taken for settled."""


class ModelBackend(Backend):
    """A fluid model of the phases, with the engine's own convergence policy."""

    name = "model"
    summary: ClassVar[str] = (
        "Arithmetic: a steady link, a guest that writes steadily at places that are random, "
        "hot or one after the other, rounds as the engine's own policy decides. No contention, no "
        "compression, no variation; what hosts cost beside the link is a rate and a few constants, "
        "which are in the results."
    )
    real = False

    @property
    def methods(self) -> Mapping[str, str]:
        """vmferry, a copy while the guest is stopped, and a disk that must converge first."""
        return {
            **super().methods,
            _COLD: "stopped, copied whole, started again",
            _CONVERGE: "the disk is copied until it converges, then memory; no PULL",
        }

    def irrelevant(self, method: str) -> frozenset[str]:
        """The engine's plugins make no difference at all, the policy only to vmferry."""
        plugins = frozenset({"tracker", "transport", "volume", "compression"})
        if method == VMFERRY:
            return plugins
        return (super().irrelevant(method) | plugins) - {"limit"}

    def check(self, spec: RunSpec) -> tuple[str, ...]:
        """Anything but a trace."""
        self.check_method(spec)
        if spec.load.trace:
            raise InputError("the model reckons with no traces")
        _assumptions(spec)
        return ()

    def estimate(self, spec: RunSpec) -> float:
        """Next to nothing."""
        return 0.02

    async def run(self, spec: RunSpec, result: Result) -> None:
        """Reckon."""
        assumptions = _assumptions(spec)
        result.versions = versions()
        result.host = {
            f"model: {name}": getattr(assumptions, name) for name in assumptions.__struct_fields__
        }
        move = {VMFERRY: _Move.vmferry, _COLD: _Move.cold, _CONVERGE: _Move.converge}
        move[spec.parameters.method](_Move(spec, assumptions, result))


def _assumptions(spec: RunSpec) -> Assumptions:
    """The constants, as the table ``[model]`` has them."""
    found = validate("the model", Assumptions, spec.model)
    assert isinstance(found, Assumptions)
    return found


class _Move:
    """One migration, reckoned; times in seconds, sizes in bytes."""

    def __init__(self, spec: RunSpec, assumed: Assumptions, result: Result) -> None:
        self.spec, self.assumed, self.result = spec, assumed, result
        self.parameters = spec.parameters
        self.trip = 2 * (self.parameters.latency or assumed.latency)
        self.rate = self._rate()
        self.dirtying = Dirtying.of(spec, assumed)
        self.now = 0.0

    def _rate(self) -> float:
        """The least of what link, loss, limit and hosts allow."""
        parameters = self.parameters
        lossy = Link.of(parameters).rate_of_one * self.assumed.connections
        caps = (parameters.bandwidth, parameters.limit, lossy, self.assumed.copy_rate)
        return min(cap for cap in caps if cap)

    def _phase(self, name: str, seconds: float) -> None:
        one = PhaseTime(role="source", name=name, begin=self.now, seconds=seconds)
        self.result.phases.append(one)
        self.now += seconds

    def _figures(self, **more: Any) -> None:
        self.result.figures |= {"total": self.now, **more}

    # -- vmferry

    def vmferry(self) -> None:
        """PUSH by the engine's policy, STOP with a bitmap, PULL."""
        self._phase("handshake", self.assumed.handshake + 4 * self.trip)
        sent, dirty = self._push_disk()
        seconds, pages, moved = self._push_memory()
        seconds, beside, pending = self._beside(dirty, seconds, moved)
        self._phase("push-memory", seconds)
        bitmap = _bitmap(
            self.parameters.disk_size // self.parameters.block_size,
            pending / self.parameters.block_size,
        )
        stop = self.assumed.stop + 4 * self.trip + (pages + bitmap) / self.rate
        self._phase("stop", stop)
        self._phase("pull", pending / self.rate + 2 * self.trip)
        self._figures(
            downtime_source=stop,
            downtime_guest=stop,
            pending=pending,
            bitmap_bytes=bitmap,
            sent=sent + moved + beside + pages + bitmap + pending,
        )

    def _push_disk(self) -> tuple[float, float]:
        """Bytes sent, and bytes dirty when the policy has had enough."""
        policy = DefaultPolicy(self.spec.policy)
        rounds: list[RoundReport] = []
        sent, left, seconds = 0.0, float(self.parameters.disk_size), 0.0
        while policy.decide(tuple(rounds)).decision is Decision.CONTINUE:
            if len(rounds) >= _MOST_ROUNDS:
                raise HypervisorError("the policy does not come to an end")
            length = left / self.rate + self.trip + self.assumed.round_cost
            dirty = self.dirtying.after(length)
            rounds.append(_report(len(rounds), left, length, dirty))
            sent, left, seconds = sent + left, dirty, seconds + length
            self._note_round(rounds[-1], self.now + seconds)
        self._phase("push-disk", seconds)
        return sent, left

    def _note_round(self, report: RoundReport, end: float) -> None:
        facts = {name: getattr(report, name) for name in report.__struct_fields__}
        self.result.rounds.append(Round(**facts, end=end))

    def _push_memory(self) -> tuple[float, float, float]:
        """Seconds, bytes of memory still dirty, and bytes sent: rounds while they shrink."""
        left, seconds, sent = float(self.parameters.memory), 0.0, 0.0
        for _ in range(self.assumed.memory_rounds):
            length = left / self.rate + self.trip
            sent, seconds = sent + left, seconds + length
            dirty = self.dirtying.memory_after(length)
            if dirty <= self.assumed.memory_enough or dirty > 0.9 * left:
                return seconds, dirty, sent
            left = dirty
        return seconds, left, sent

    def _beside(self, dirty: float, seconds: float, memory: float) -> tuple[float, float, float]:
        """Disk rounds beside the memory, with which they share the link in halves.

        Returns the seconds that the memory takes now, the bytes of disk sent meanwhile, and those
        that are dirty at the end.
        """
        together = seconds + min(dirty, memory) / self.rate
        if dirty > memory:
            new = self.dirtying.after(together)
            return together, memory, min(self.dirtying.used, dirty - memory + new)
        round_of = dirty
        for _ in range(_SETTLE):
            length = min(together, max(self.assumed.round_pause, 2 * round_of / self.rate))
            round_of = self.dirtying.after(length)
        return together, dirty, round_of

    # -- baselines

    def cold(self) -> None:
        """Everything while the guest stands still."""
        whole = self.parameters.disk_size + self.parameters.memory
        self._phase("stop", self.assumed.stop)
        self._phase("copy", whole / self.rate + self.trip)
        self._phase("start", self.assumed.stop)
        self._figures(downtime_source=self.now, downtime_guest=self.now, sent=whole, pending=0)

    def converge(self) -> None:
        """Rounds until what is dirty can be sent within the stop; fails if it never can."""
        left, sent, seconds = float(self.parameters.disk_size), 0.0, 0.0
        enough = self.assumed.converged * self.rate
        for _ in range(_MOST_ROUNDS):
            length = left / self.rate + self.trip
            sent, seconds = sent + left, seconds + length
            dirty = self.dirtying.after(length)
            if dirty <= enough:
                break
            if dirty >= left * 0.999:
                raise HypervisorError("does not converge: the guest writes faster than the link")
            left = dirty
        self._phase("mirror", seconds)
        memory, pages, moved = self._push_memory()
        self._phase("migrate", memory)
        stop = self.assumed.stop + 2 * self.trip + (dirty + pages) / self.rate
        self._phase("stop", stop)
        self._figures(
            downtime_source=stop, downtime_guest=stop, pending=0, sent=sent + moved + dirty + pages
        )


def _report(number: int, scanned: float, seconds: float, dirty: float) -> RoundReport:
    return RoundReport(
        number=number,
        scanned=int(scanned),
        sent=int(scanned),
        zeroes=0,
        seconds=seconds,
        dirty=int(dirty),
    )


def _bitmap(blocks: int, dirty: float) -> float:
    """Bytes of a map with so many dirty blocks at random places: what its entropy allows."""
    share = min(max(dirty / blocks, 0.0), 1.0)
    if share in (0.0, 1.0):
        return 32.0
    bits = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    return 32 + blocks * bits / 8
