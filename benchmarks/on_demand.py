"""Latency of a read that must be fetched, while the background push runs at full speed.

    python benchmarks/on_demand.py --size 2GiB

The whole disk is pending at the switch. As soon as the guest "runs" at the destination, a process
of its own reads 4 KiB blocks through the pull disk's NBD export, one at a time, from the end of the
disk, where the push comes last. A reading of the same blocks afterwards shows what the export
itself costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nothing
from nothing import Idle, nothing_installed
from stage import be_agent_if_asked, staged

from vmferry.api import ArrivingDisk
from vmferry.units import KIB, MIB, format_duration, parse_size
from vmferry_hypervisors.process import nbd

_REPLY = struct.Struct(">IIQ")


def read_blocks(url: str, count: int) -> list[float]:
    """Seconds that each of ``count`` reads took."""
    connection, export = nbd.connect(url, 10)
    connection.settimeout(60)
    times = []
    for number in range(count):
        offset = export.size - (number + 1) * 64 * KIB
        began = time.perf_counter()
        connection.sendall(nbd.pack_request(nbd.Command.READ, number, offset, 4096))
        left = _REPLY.size + 4096
        while left:
            left -= len(connection.recv(left))
        times.append(time.perf_counter() - began)
    return times


class Reading(nothing._Arrival):
    """Its guest is a process that reads."""

    def __init__(self, disk: ArrivingDisk, stream: Any) -> None:
        super().__init__(stream)
        self._disk = disk

    async def activate(self) -> None:
        command = [sys.executable, __file__, "--reader", self._disk.export]
        self._reader = subprocess.Popen(command, start_new_session=True)

    async def pivot(self, disk: ArrivingDisk) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._reader.wait)


async def arrive(self: Any, guest: Any, disks: Any, stream: Any) -> Reading:
    return Reading(disks[0], stream)


def reader(url: str) -> None:
    count = int(os.environ["ON_DEMAND_READS"])
    pending, local = read_blocks(url, count), read_blocks(url, count)
    Path(os.environ["ON_DEMAND_RESULT"]).write_text(json.dumps([pending, local]))


async def measure(folder: Path, size: int, choices: dict[str, Any]) -> tuple[Any, Any]:
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        for _ in range(size // (8 * MIB)):
            file.write(random.randbytes(8 * MIB))
    Idle.dirty = ((0, size),)
    async with staged(disk, folder, choices) as (job, agent):
        summary = await job.run()
        await agent._ended()
    return summary, agent.summary


def show(name: str, times: list[float]) -> None:
    ordered = sorted(times)
    parts = {
        "median": statistics.median(times),
        "p90": ordered[len(times) * 9 // 10],
        "p99": ordered[len(times) * 99 // 100],
        "max": ordered[-1],
    }
    print(f"{name:24}" + "  ".join(f"{k} {format_duration(v)}" for k, v in parts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="2GiB")
    parser.add_argument("--reads", type=int, default=500)
    parser.add_argument("--piece", default="256KiB")
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    size = parse_size(arguments.size)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, nothing_installed():
        result = Path(folder) / "result.json"
        os.environ |= {"ON_DEMAND_RESULT": str(result), "ON_DEMAND_READS": str(arguments.reads)}
        choices = {
            "piece": parse_size(arguments.piece),
            "block_size": 64 * KIB,
            "threshold": size,
            "compression": "none",
        }
        summary, there = asyncio.run(measure(Path(folder), size, choices))
        pending, local = json.loads(result.read_text())
    show("fetched on demand", pending)
    show("local, through export", local)
    print(
        f"pull of {size >> 20} MiB: {summary.phases['pull']:.2f} s; "
        f"{there['counters']['on_demand_requests']} requests waited for the source"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reader"]:
        reader(sys.argv[2])
    else:
        nothing.Nothing.arrive = arrive  # type: ignore[method-assign]
        be_agent_if_asked()
        main()
