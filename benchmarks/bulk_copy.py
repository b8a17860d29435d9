"""Bulk copy of a disk through the whole engine, next to nbdcopy and qemu-img in the same run.

    python benchmarks/bulk_copy.py --size 2GiB --rounds 5

Each way copies one file of random data into a new file over a loopback connection; the order is
shuffled in every repetition, and memory is touched beforehand. vmferry runs with its BLAKE3
digests on, source and destination in a process each; time is that of PUSH's round 0, from the
first read until every extent is in its file. The peers' time is that of the whole program, which
has no digest. ``--dirty`` then copies again with that share of the blocks dirty.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nothing import NAME, Idle, nothing_installed
from stage import be_agent_if_asked, staged

from vmferry.units import MIB, format_rate, parse_size


def make_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, 8 * MIB)))


async def vmferry_once(disk: Path, folder: Path, choices: dict[str, Any]) -> dict[str, float]:
    async with staged(disk, folder, choices) as (job, agent):
        began, used = time.perf_counter(), processor_seconds(agent.pid)
        summary = await job.run()
        whole = time.perf_counter() - began
        used = processor_seconds(agent.pid) - used
    result = {"seconds": summary.rounds[0].seconds, "whole": whole, "cpu": used}
    if len(summary.rounds) > 1:
        result["dirty_seconds"] = summary.rounds[1].seconds
        result["dirty_bytes"] = summary.rounds[1].scanned
    return result


def processor_seconds(agent: int) -> float:
    """What this process and the agent have used so far."""
    mine = time.process_time()
    fields = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()
    return mine + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def vmferry(disk: Path, folder: Path, choices: dict[str, Any]) -> dict[str, float]:
    result = asyncio.run(vmferry_once(disk, folder, choices))
    check(disk, folder / "pool" / f"{NAME}-disk0.raw")
    return result


def check(disk: Path, copy: Path) -> None:
    subprocess.run(["cmp", disk, copy], check=True)


def peer(command: Callable[[Path, int], list[str]]) -> Callable[..., dict[str, float]]:
    def run(disk: Path, folder: Path, _: dict[str, Any]) -> dict[str, float]:
        copy = folder / "copy.raw"
        with copy.open("wb") as file:
            file.truncate(disk.stat().st_size)
        port = random.randint(20000, 60000)
        used = sum(os.times()[2:4])
        listen = ["-b", "127.0.0.1", "-p", str(port), "-f", "raw", "-e", "4", "--cache=writeback"]
        with subprocess.Popen(["qemu-nbd", *listen, "-t", copy]) as server:
            time.sleep(0.5)
            began = time.perf_counter()
            subprocess.run(command(disk, port), check=True)
            seconds = time.perf_counter() - began
            server.terminate()
        used = sum(os.times()[2:4]) - used
        check(disk, copy)
        return {"seconds": seconds, "cpu": used}

    return run


def nbdcopy(disk: Path, port: int) -> list[str]:
    return ["nbdcopy", "--destination-is-zero", str(disk), f"nbd://127.0.0.1:{port}"]


def qemu_img(disk: Path, port: int) -> list[str]:
    target = f"nbd://127.0.0.1:{port}"
    return [
        "qemu-img",
        "convert",
        "-n",
        "-W",
        "-m",
        "8",
        "-f",
        "raw",
        "-O",
        "raw",
        str(disk),
        target,
    ]


WAYS = {"vmferry": vmferry, "nbdcopy": peer(nbdcopy), "qemu-img": peer(qemu_img)}


def warm_memory(path: Path, size: int) -> None:
    """Touch as much memory as the copy will need, so that none is new to a virtual machine."""
    zeroes = bytes(8 * MIB)
    with path.open("wb") as file:
        for _ in range(size // len(zeroes)):
            file.write(zeroes)
    path.unlink()


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    disk = folder / "disk.raw"
    size = parse_size(arguments.size)
    make_random(disk, size)
    choices = {
        "lanes": arguments.lanes,
        "piece": parse_size(arguments.piece),
        "depth": arguments.depth,
        "block_size": 65536,
        "compression": arguments.compression,
        "threshold": 0,
        "max_rounds": 2,
    }
    blocks = size // 65536
    dirty = random.Random(1).sample(range(blocks), int(blocks * arguments.dirty))
    Idle.dirty = tuple((block * 65536, 65536) for block in sorted(dirty))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.ways}
    for _ in range(arguments.rounds):
        for name in random.sample(arguments.ways, len(arguments.ways)):
            place = folder / "run"
            place.mkdir()
            warm_memory(place / "warm", size)
            results[name].append(WAYS[name](disk, place, choices))
            shutil.rmtree(place)
    return results


def report(results: dict[str, list[dict[str, float]]], size: int) -> None:
    medians = {
        name: statistics.median(r["seconds"] for r in runs) for name, runs in results.items()
    }
    for name, median in medians.items():
        times = " ".join(f"{run['seconds']:.2f}" for run in results[name])
        print(f"{name:10} {median:6.2f} s  {format_rate(size / median):>14}   ({times})")
    best = min((m for name, m in medians.items() if name != "vmferry"), default=None)
    if best and "vmferry" in medians:
        print(f"vmferry is {best / medians['vmferry']:.2f} times as fast as the faster peer")
    again = [run for run in results.get("vmferry", ()) if "dirty_seconds" in run]
    if again:
        seconds = statistics.median(run["dirty_seconds"] for run in again)
        share = again[0]["dirty_bytes"] / size
        print(
            f"second copy, {share:.1%} dirty: {seconds:.3f} s, "
            f"{seconds / medians['vmferry']:.1%} of the first"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="2GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--piece", default="4MiB")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--compression", default="auto")
    parser.add_argument("--dirty", type=float, default=0.01)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--folder", help="where to make the files; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, nothing_installed():
        results = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(results))
    else:
        report(results, parse_size(arguments.size))


if __name__ == "__main__":
    be_agent_if_asked()
    main()
