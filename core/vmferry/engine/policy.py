"""When PUSH has done enough.

The switch does not wait for the disks to converge: what is dirty then is pulled by the
destination. A round pays only while it shrinks what the guest would have to wait for, so the
policy stops early, and a guest that writes faster than the link is switched after one or two.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple, Protocol

import msgspec

from vmferry.api import Decision, Options, RoundReport
from vmferry.units import MIB, format_rate, format_size

__all__ = ["ConvergencePolicy", "DefaultPolicy", "PolicyOptions", "Ruling"]


class Ruling(NamedTuple):
    """A decision and what people are told about it."""

    decision: Decision
    reason: str


class ConvergencePolicy(Protocol):
    """Decides after each round of PUSH. Pure but for ``force``: it neither waits nor reads time."""

    def decide(self, rounds: tuple[RoundReport, ...]) -> Ruling:
        """Rule on another round; ``rounds`` are all finished ones, the last one last."""

    def force(self) -> None:
        """Make every later decision ``SWITCH``: an operator asked for it."""


class PolicyOptions(Options, frozen=True, kw_only=True):
    """When to stop sending rounds."""

    threshold: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="switch when no more than this is dirty; it is pulled afterwards",
            extra={"unit": "bytes"},
        ),
    ] = 16 * MIB
    max_rounds: Annotated[
        int, msgspec.Meta(ge=1, description="most rounds, the full copy included")
    ] = 6
    converge: Annotated[
        bool,
        msgspec.Meta(
            description="go on until no more than the threshold is dirty, however long that takes"
        ),
    ] = False
    min_gain: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            lt=1,
            description="share by which a round must shrink what is dirty for another to follow",
        ),
    ] = 0.2


class DefaultPolicy:
    """Stops at little left, at rounds that do not help, at enough rounds, or when told to."""

    def __init__(self, options: PolicyOptions | None = None) -> None:
        self.options = options or PolicyOptions()
        self._forced = False

    def force(self) -> None:
        """Make every later decision ``SWITCH``."""
        self._forced = True

    def decide(self, rounds: tuple[RoundReport, ...]) -> Ruling:
        """Rule on another round. Before the full copy has ended there is always another."""
        if not rounds:
            return Ruling(Decision.CONTINUE, "the full copy comes first")
        if reason := self._reason_to_switch(rounds):
            return Ruling(Decision.SWITCH, reason)
        left = format_size(rounds[-1].dirty)
        return Ruling(Decision.CONTINUE, f"{left} are dirty and another round will shrink that")

    def _reason_to_switch(self, rounds: tuple[RoundReport, ...]) -> str:
        last = rounds[-1]
        left = format_size(last.dirty)
        if self._forced:
            return f"the operator asked for it; {left} are left to pull"
        if last.dirty <= self.options.threshold:
            return f"{left} are dirty, within the {format_size(self.options.threshold)} allowed"
        if self.options.converge:
            return ""
        if len(rounds) >= self.options.max_rounds:
            return f"{len(rounds)} rounds are done, the most allowed; {left} are left to pull"
        return self._useless(rounds)

    def _useless(self, rounds: tuple[RoundReport, ...]) -> str:
        """Why another round would leave about as much dirty as there is."""
        last = rounds[-1]
        if last.seconds > 0 and last.dirty_rate >= last.send_rate:
            return (
                f"the guest writes {format_rate(last.dirty_rate)} and the link "
                f"takes {format_rate(last.send_rate)}: rounds do not help"
            )
        if len(rounds) < 2:
            return ""
        before = rounds[-2].dirty
        if last.dirty > before * (1 - self.options.min_gain):
            return (
                f"the last round left {format_size(last.dirty)} dirty "
                f"after {format_size(before)}: rounds do not help"
            )
        return ""
