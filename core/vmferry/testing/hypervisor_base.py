"""Sentences of the hypervisor contract that the kit quotes, and what its parts share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path

from vmferry.api.hypervisor import Arrival, Departure
from vmferry.testing.hypervisor_bench import HypervisorBench

PATIENCE = 30.0
STATES = ("departed", "precopied", "suspended", "transferred")

ALL_DISKS = "Describe a running guest with all its local disks; changes nothing."
LISTS = "GuestNotFound: lists those there are."
CHECK = "Reasons why the guest cannot come here: memory, name, versions; changes nothing."
RUNS_ON = "Send memory while the guest runs"
BEGIN = "Begin to send; the guest runs on. On failure nothing is left behind."
STOPPED = "On return no instruction of the guest runs, and none will until ``resume``."
RESUME = "Let the guest run on here, as if nothing had been; ends the departure."
TIDY = "Legal at any time before the commit, in any state, also if it was never suspended."
CLEAN = "Cleans up all that ``depart`` made. May be called twice."
WHOLE = "On return the guest is whole, paused, and has not run."
NOT_READ = "A disk may be connected, not read."
ACTIVE = "Let the guest run. On return it does."
CHANNELS = "memory can be sent by several streams."
ABORT = "Destroy the half-built guest, free what was reserved."
NOTHING = "On failure nothing is left behind."
DESTROY = "Remove the guest that stays behind; ends the departure. Its disks are left untouched."
PIVOT = "later request of the guest goes to the local volume and none is in flight on the export."
GONE = "GuestStopped: the guest shut down, crashed or is being rebooted."
ENDS = "Take memory and state from the stream until complete."
SHOWN = "Attach ``disk`` so that blocks in ``pending`` are read and written through its export."
NOT_CHANGED = "The map is not changed afterwards and must not be."
FINISH = "All disks are local: forget the migration; the guest runs on. May be called twice."
DOWNTIME = "Seconds the guest itself saw no time pass, or ``None`` if it cannot tell."


async def reach(bench: HypervisorBench, state: str) -> tuple[Departure, Arrival]:
    """Both ends, with the source's in ``state``; the destination's has taken what was sent."""
    departure, arrival = await bench.begin()
    steps = STATES.index(state)
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(arrival.receive())
        if steps >= 1:
            await departure.precopy()
        if steps >= 2:
            await departure.suspend()
        if steps >= 3:
            await departure.transfer()
        else:
            receiving.cancel()
    return departure, arrival


def digests(paths: Mapping[str, Path]) -> dict[str, str]:
    """A digest of each file, by name."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        for name, path in paths.items()
    }
