"""How much of a disk and of memory a guest has dirtied after some time, on average."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

from vmferry.experiments.backends.assumptions import Assumptions
from vmferry.experiments.results import RunSpec

__all__ = ["Dirtying", "distinct"]

_PAGE = 4096
_MEMORY_SHARE = 4
_HOT, _HOT_PART = 0.9, 0.1


def distinct(marks: float, places: float) -> float:
    """How many of ``places`` at least one of ``marks`` falls on, each at random."""
    return places * -math.expm1(-marks / places) if places else 0.0


class Dirtying(NamedTuple):
    """A guest's writing: sizes in bytes, rates in requests and pages per second."""

    pattern: str
    used: float
    block: int
    request: int
    rate: float
    memory: float
    memory_rate: float

    @classmethod
    def of(cls, spec: RunSpec, assumed: Assumptions) -> Self:
        """The writing of a run's guest."""
        load, parameters = spec.load, spec.parameters
        rate = load.write_rate
        if load.full_speed:
            rate = assumed.full_speed / load.request * (1 - load.read_ratio)
        used = parameters.disk_size * load.span
        memory = parameters.memory / _MEMORY_SHARE
        return cls(
            load.pattern, used, parameters.block_size, load.request, rate, memory, load.memory_rate
        )

    def after(self, seconds: float) -> float:
        """Bytes of disk in dirty blocks after that long."""
        requests = self.rate * seconds
        blocks = max(1.0, self.request / self.block)
        if self.pattern == "sequential":
            written = min(requests * self.request, self.used)
            return math.ceil(written / self.block) * self.block if written else 0.0
        places = self.used / self.block
        marks = requests * blocks
        if self.pattern == "random":
            return distinct(marks, places) * self.block
        hot = places * _HOT_PART
        cold = distinct(marks * (1 - _HOT), places) * (1 - _HOT_PART)
        return (distinct(marks * (_HOT + (1 - _HOT) * _HOT_PART), hot) + cold) * self.block

    def memory_after(self, seconds: float) -> float:
        """Bytes of memory in dirty pages after that long."""
        return distinct(self.memory_rate * seconds, self.memory / _PAGE) * _PAGE
