"""Time the dirty map's operations on large maps, and the memory they take.

Two maps of one disk are built for each pattern, the second with other blocks, and every
operation is run on them: the best of a few repeats, in milliseconds. Memory is the peak that
Python and numpy allocated during one more run of it, in MiB, on top of the maps themselves.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from vmferry.dirtymap import DirtyMap
from vmferry.units import MIB, format_size, parse_size

Result = dict[str, Any]
Runs = tuple[np.ndarray, np.ndarray]


def clustered(rng: np.random.Generator, blocks: int, count: int) -> Runs:
    """First blocks and lengths of ``count`` runs of 1 to 32 blocks, a hundred to a cluster."""
    centres = rng.integers(0, max(1, blocks - 70_000), -(-count // 100))
    starts = np.repeat(centres, 100)[:count] + rng.integers(0, min(60_000, blocks // 2), count)
    return starts, np.minimum(rng.integers(1, 33, count), blocks - starts)


def scattered(rng: np.random.Generator, blocks: int, count: int) -> Runs:
    """``count`` single blocks anywhere."""
    return rng.integers(0, blocks, count), np.ones(count, np.int64)


def build(runs: Runs, size: int, block_size: int) -> DirtyMap:
    made = DirtyMap(size, block_size)
    offsets = runs[0] * block_size
    made.mark_runs(offsets, np.minimum(runs[1] * block_size, size - offsets))
    return made


def drain(made: DirtyMap, **options: int) -> None:
    for _ in made.runs(**options):
        pass


def take_turns(made: DirtyMap) -> Callable[[], object]:
    """A call that takes what the call before it took."""
    held = [made]

    def take() -> None:
        held[0] = held[0].take()

    return take


def whole_map_operations(
    ours: DirtyMap, theirs: DirtyMap, runs: Runs
) -> dict[str, Callable[[], object]]:
    size, block_size = ours.size, ours.block_size
    wire, twin = ours.encode(), ours.copy()
    return {
        "mark_runs": lambda: build(runs, size, block_size),
        "count": ours.count,
        "runs": lambda: drain(ours),
        "runs, 1 MiB, gap 16 KiB": lambda: drain(ours, max_extent=MIB, merge_gap=16384),
        "run_arrays": ours.run_arrays,
        "copy": ours.copy,
        "take": take_turns(ours.copy()),
        "union": lambda: ours | theirs,
        "update in place": lambda: ours.update(twin),
        "difference": lambda: ours - theirs,
        "intersection": lambda: ours & theirs,
        "equal": lambda: ours == twin,
        "coarsen to 64 KiB": lambda: ours.coarsen(max(65536, block_size)),
        "refine to half": lambda: ours.refine(max(512, block_size // 2)),
        "encode": ours.encode,
        "decode": lambda: DirtyMap.decode(wire, size=size, block_size=block_size),
    }


def best_of(repeats: int, call: Callable[[], object]) -> float:
    """Shortest of ``repeats`` calls, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def peak_of(call: Callable[[], object]) -> int:
    """Most bytes allocated at once during a call, beyond what was allocated before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_map(name: str, runs: tuple[Runs, Runs], args: argparse.Namespace) -> list[Result]:
    ours, theirs = (build(each, args.size, args.block_size) for each in runs)
    facts = {
        "pattern": name,
        "blocks": ours.count(),
        "runs": int(ours.run_arrays()[0].size),
        "wire_bytes": len(ours.encode()),
        "map_mib": round(peak_of(ours.copy) / MIB, 1),
    }
    return [
        facts
        | {
            "operation": operation,
            "ms": round(best_of(args.repeats, call) * 1e3, 3),
            "peak_mib": round(peak_of(call) / MIB, 1),
        }
        for operation, call in whole_map_operations(ours, theirs, runs[0]).items()
    ]


def measure_requests(args: argparse.Namespace) -> list[Result]:
    """Microseconds of the calls made for one guest request, averaged over many offsets."""
    rng = np.random.default_rng(args.seed)
    made = build(
        scattered(rng, args.size // args.block_size, args.blocks), args.size, args.block_size
    )
    offsets = rng.integers(0, args.size - 2 * args.block_size, 20_000).tolist()
    length = args.block_size
    calls: dict[str, Callable[[int], object]] = {
        "any": lambda offset: made.any(offset, length),
        "all": lambda offset: made.all(offset, length),
        "first_run": lambda offset: made.first_run(offset, max_extent=16 * length),
        "mark": lambda offset: made.mark(offset, length),
        "clear": lambda offset: made.clear(offset, 2 * length),
    }
    results = []
    for operation, call in calls.items():
        seconds = best_of(args.repeats, lambda: [call(offset) for offset in offsets])  # noqa: B023
        results.append({"operation": operation, "us": round(seconds / len(offsets) * 1e6, 2)})
    return results


def print_tables(maps: list[Result], requests: list[Result]) -> None:
    seen = None
    for row in maps:
        if row["pattern"] != seen:
            seen = row["pattern"]
            print(
                f"\n{seen}: {row['blocks']} blocks in {row['runs']} runs, "
                f"map {row['map_mib']} MiB, wire {format_size(row['wire_bytes'])}"
            )
            print(f"{'operation':<26}{'ms':>10}{'peak MiB':>10}")
        print(f"{row['operation']:<26}{row['ms']:>10.2f}{row['peak_mib']:>10.1f}")
    print(f"\n{'one request':<26}{'us':>10}")
    for row in requests:
        print(f"{row['operation']:<26}{row['us']:>10.2f}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=parse_size, default="1TiB", help="of the disk")
    parser.add_argument("--block-size", type=parse_size, default="4KiB")
    parser.add_argument("--runs", type=int, default=200_000, help="clustered runs")
    parser.add_argument("--blocks", type=int, default=1_000_000, help="scattered blocks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rng = np.random.default_rng(args.seed)
    blocks = args.size // args.block_size
    patterns = {"clustered": (clustered, args.runs), "scattered": (scattered, args.blocks)}
    maps: list[Result] = []
    for name, (pattern, count) in patterns.items():
        pair = pattern(rng, blocks, count), pattern(rng, blocks, count)
        maps += measure_map(name, pair, args)
    requests = measure_requests(args)
    if args.json:
        print(json.dumps({"maps": maps, "requests": requests}, indent=2))
    else:
        print_tables(maps, requests)


if __name__ == "__main__":
    main()
