"""Memory of both agents with a 1 TiB sparse disk in 4 KiB blocks.

    python benchmarks/footprint.py

The disk holds 256 MiB of data spread over it; 200 000 clustered blocks are dirtied during the full
copy and pulled after the switch. The highest resident size of each agent's process is polled every
20 ms; the one of a Python with vmferry imported is printed beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import psutil
from nothing import Idle, nothing_installed
from stage import be_agent_if_asked, staged

from vmferry.units import KIB, MIB, TIB, format_size


def make_sparse(path: Path, size: int, pieces: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(pieces):
            file.seek(number * (size // pieces))
            file.write(random.randbytes(MIB))


def clustered(size: int, blocks: int, block: int) -> tuple[tuple[int, int], ...]:
    """Runs of up to 64 blocks in 4096 neighbourhoods."""
    chance, runs, left = random.Random(1), [], blocks
    centres = [chance.randrange(size // block - 8192) for _ in range(4096)]
    while left > 0:
        length = min(left, chance.randint(1, 64))
        runs.append(((chance.choice(centres) + chance.randrange(4096)) * block, length * block))
        left -= length
    return tuple(runs)


async def watch(peaks: dict[int, int]) -> None:
    processes = {pid: psutil.Process(pid) for pid in peaks}
    while True:
        for pid, process in processes.items():
            peaks[pid] = max(peaks[pid], process.memory_info().rss)
        await asyncio.sleep(0.02)


async def measure(folder: Path, size: int, choices: dict[str, Any]) -> tuple[Any, list[int], int]:
    disk = folder / "disk.raw"
    make_sparse(disk, size, 256)
    before = psutil.Process().memory_info().rss
    async with staged(disk, folder, choices) as (job, agent):
        peaks = {os.getpid(): 0, agent.pid: 0}
        watching = asyncio.create_task(watch(peaks))
        summary = await job.run()
        watching.cancel()
    return summary, list(peaks.values()), before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    Idle.dirty = clustered(TIB, 200_000, 4 * KIB)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, nothing_installed():
        choices = {"block_size": 4 * KIB, "threshold": TIB}
        summary, (source, destination), before = asyncio.run(measure(Path(folder), TIB, choices))
    print(
        f"source {format_size(source)}, destination {format_size(destination)}; "
        f"before the migration {format_size(before)}"
    )
    print(
        f"pending at the switch {format_size(summary.pending)}, "
        f"bitmap on the wire {format_size(summary.bitmap_bytes)}, "
        f"pull {summary.phases['pull']:.1f} s"
    )


if __name__ == "__main__":
    be_agent_if_asked()
    main()
