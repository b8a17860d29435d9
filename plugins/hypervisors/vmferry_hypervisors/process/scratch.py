"""The part of guest memory that the workload dirties, and the table to check it by.

Each scratch page is stamped with its number and a counter; the table holds the counter of each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vmferry_hypervisors.process.layout import PAGE, Plan, Registers
from vmferry_hypervisors.process.memory import GuestMemory
from vmferry_hypervisors.process.stamps import MEMORY_MAGIC, ZERO, mix64, read_stamps, stamp
from vmferry_hypervisors.process.workload import Splitmix

__all__ = ["Scratch", "bad_pages"]

_MOST = 256
"""Pages dirtied in one step at most; a guest that fell behind does not catch up."""
_PIECE = 1024


class Scratch:
    """Dirties ``rate`` pages a second."""

    def __init__(self, memory: GuestMemory, plan: Plan, rate: float) -> None:
        self._memory, self._plan, self._rate = memory, plan, rate
        self._counters, self._pages = _views(memory, plan)
        self._due = 0.0
        self._last: float | None = None

    def step(self, now: float, registers: Registers, random: Splitmix) -> None:
        """Dirty what is due at ``now``."""
        self._due += (now - (now if self._last is None else self._last)) * self._rate
        self._last = now
        count = min(int(self._due), _MOST, self._plan.scratch_pages)
        if count < 1:
            return
        self._due = min(self._due - count, 1.0)
        seed = np.full(count, random.below(2**63), dtype=np.uint64)
        numbers = mix64(np.arange(count, dtype=np.uint64), seed)
        pages = np.unique(numbers % np.uint64(self._plan.scratch_pages)).astype(np.int64)
        registers.memory_writes += len(pages)
        self._write(pages, registers.memory_writes & 0xFFFFFFFF or 1)

    def _write(self, pages: npt.NDArray[np.int64], counter: int) -> None:
        """Write, and mark only then; see ``memory``."""
        contents = stamp(MEMORY_MAGIC, pages, np.full(len(pages), counter), PAGE)
        self._pages[pages] = contents
        self._counters[pages] = counter
        dirty = self._memory.dirty
        dirty[self._plan.scratch // PAGE + pages] = 1
        dirty[(self._plan.counters + pages * 4) // PAGE] = 1


def _views(
    memory: GuestMemory, plan: Plan
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    counters = memory.bytes[plan.counters : plan.counters + plan.scratch_pages * 4].view("<u4")
    first = plan.scratch // PAGE
    return counters, memory.pages[first : first + plan.scratch_pages]


def bad_pages(memory: GuestMemory, plan: Plan) -> list[int]:
    """Scratch pages that do not hold what the table says, by number."""
    counters, pages = _views(memory, plan)
    bad: list[int] = []
    for start in range(0, plan.scratch_pages, _PIECE):
        numbers = np.arange(start, min(start + _PIECE, plan.scratch_pages))
        found = read_stamps(MEMORY_MAGIC, numbers, pages[numbers])
        expected = counters[numbers].astype(np.int64)
        bad += numbers[found != np.where(expected, expected, ZERO)].tolist()
    return bad
