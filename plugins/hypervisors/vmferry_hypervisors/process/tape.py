"""The tape in a guest's memory: requests of a trace, which it makes again and again."""

from __future__ import annotations

from pathlib import Path

from vmferry_hypervisors.process.layout import Plan, Slot
from vmferry_hypervisors.process.memory import GuestMemory
from vmferry_hypervisors.process.trace import ENTRY, Requests, read_trace
from vmferry_hypervisors.process.workload import Kind

__all__ = ["Tape", "load_trace", "store_tape"]


def load_trace(trace: str) -> Requests | None:
    """The requests of the trace that a workload names; ``None`` if it names none."""
    return read_trace(Path(trace)) if trace else None


def store_tape(memory: GuestMemory, plan: Plan, requests: Requests) -> None:
    """Write the requests where the plan has the tape."""
    size = plan.entries * ENTRY.itemsize
    memory.bytes[plan.tape : plan.tape + size] = requests.view("u1")


class Tape:
    """Reads the tape; ``speed`` is how many times faster than it was recorded, 0 without pauses.

    A request of the trace is made whole units, and is put inside the part of the disk that the
    guest uses, by its remainder.
    """

    def __init__(self, memory: GuestMemory, plan: Plan, speed: float) -> None:
        size = plan.entries * ENTRY.itemsize
        self._requests = memory.bytes[plan.tape : plan.tape + size].view(ENTRY)
        self._plan, self._speed = plan, speed

    def slot(self, cursor: int) -> Slot:
        """The request that the guest makes as its ``cursor``-th; a write has no sequence yet."""
        request = self._requests[cursor % len(self._requests)]
        number = int(request["disk"]) % len(self._plan.disks)
        unit, units = self._plan.unit, self._plan.disks[number].units
        kind = Kind(int(request["kind"]))
        if kind == Kind.FLUSH:
            return Slot(kind, number, 0, 0, 0)
        offset = int(request["offset"])
        first, end = offset // unit, -(-(offset + int(request["length"])) // unit)
        count = min(end - first, units)
        return Slot(kind, number, 0, first % (units - count + 1), count)

    def pause(self, cursor: int) -> float:
        """Seconds from that request to the next one; the last is followed by the first at once."""
        here = cursor % len(self._requests)
        if not self._speed or here + 1 == len(self._requests):
            return 0.0
        times = self._requests["at"]
        return max(0.0, (int(times[here + 1]) - int(times[here])) / 1e6 / self._speed)
