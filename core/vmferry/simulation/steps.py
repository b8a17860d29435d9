"""The steps of a migration: every message and every journal write, counted as they happen."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Edge", "Moment", "Step", "Steps"]


class Edge(enum.StrEnum):
    """When something is done to a step."""

    BEFORE = "before"
    """A message goes onto the wire and has not arrived; a write was asked for and not begun."""
    AFTER = "after"
    """A message was taken from its lane, a write is durable; nobody has acted on it yet."""


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """One kind of step.

    Attributes:
        host: who sends the message, or whose journal it is.
        phase: what the source was doing.
        what: the message and its kind of lane, or the journal's method and what it writes.

    """

    host: str
    phase: str
    what: str

    def __str__(self) -> str:
        return f"{self.host}:{self.phase}:{self.what}"


@dataclass(frozen=True, slots=True)
class Moment:
    """One edge of one occurrence of a step; occurrences count from 1."""

    step: Step
    edge: Edge
    number: int = 1


class Steps:
    """Counts steps, and calls whoever waits for one of them.

    Attributes:
        counts: how often each step has begun, in the order of their first occurrence.
        ends: how often each has ended.
        total: how many moments have passed.

    """

    def __init__(self) -> None:
        self.counts: Counter[Step] = Counter()
        self.total = 0
        self.ends: Counter[Step] = Counter()
        self._waiting: dict[Moment | int, Callable[[Moment], None]] = {}

    def at(self, moment: Moment | int, action: Callable[[Moment], None]) -> None:
        """Have ``action`` called at a moment, or when so many have passed; once."""
        self._waiting[moment] = action

    def passes(self, step: Step, edge: Edge) -> None:
        """A step begins or ends at this very moment."""
        counts = self.counts if edge is Edge.BEFORE else self.ends
        counts[step] += 1
        self.total += 1
        moment = Moment(step, edge, counts[step])
        for key in (moment, self.total):
            if (action := self._waiting.pop(key, None)) is not None:
                action(moment)
