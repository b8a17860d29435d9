"""QEMU's own storage migration beside vmferry's, on the same guest with the same limits.

    python benchmarks/qemu_native.py --size 128MiB --rounds 3

The native way: the disk is mirrored into an NBD export of the destination's QEMU until both agree,
then the memory is sent, and the mirror is ended while the guest stands still (pause-before-
switchover). Each run is a new guest; it checks itself, and each of its disks is compared with its
own record afterwards. The total begins before the destination's QEMU is started, either way. The
downtime is the guest's own: the gap in what it says on its serial line. A guest that says nothing
more counts as lost: QEMU before 9.0 may lose memory of a guest without KVM, either way
(docs/qemu.md).

The last guest writes faster than its link carries (--bandwidth), so that the native mirror never
agrees with the disk. It is given --patience times what vmferry took, and then ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vmferry.api import MoveLink, Verdict
from vmferry.units import MIB, parse_duration, parse_size
from vmferry_hypervisors.qemu.mirror import MIRROR
from vmferry_hypervisors.qemu.trial import QemuTrial
from vmferry_hypervisors.qemu.workload.trial_options import QemuTrialOptions

SETTLE = 1.0


@dataclass
class Setup:
    """What all runs have in common."""

    size: int
    memory: int
    downtime_limit: float
    device: str
    before: float


@dataclass
class Load:
    """What the guest does, and what its link carries; bytes, bytes/s, 0 is no limit."""

    name: str
    options: dict[str, Any]
    bandwidth: int = 0


@dataclass
class Result:
    """One run; seconds, bytes. The gap is ``None`` if the guest said nothing afterwards."""

    total: float
    moved: int
    gap: float | None
    finished: bool
    good: bool


def sound(verdict: Verdict) -> bool:
    """Whether nothing is amiss; an idle guest has written nothing."""
    return not (verdict.lost + verdict.wrong + verdict.bad_reads + verdict.bad_memory)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_trial(setup: Setup, load: Load) -> QemuTrial:
    options = {
        "memory": setup.memory,
        "memory_fill": setup.memory // 2,
        "device": setup.device,
        "downtime_limit": setup.downtime_limit,
        "prefill": 1.0,
        **load.options,
    }
    return QemuTrial(msgspec.convert(options, QemuTrialOptions))


async def arrived(trial: QemuTrial) -> float | None:
    """How long the guest said nothing; ``None`` if it says nothing within a minute."""
    try:
        async with asyncio.timeout(60):
            while not trial.record.switches:
                await asyncio.sleep(0.05)
                await asyncio.to_thread(trial.record.update)
    except TimeoutError:
        return None
    await asyncio.sleep(SETTLE)
    return trial.record.switches[-1]


async def unshaped(port: int) -> int:
    """Both ways keep to a limit by themselves."""
    return port


async def native(setup: Setup, load: Load, folder: Path, patience: float) -> Result:
    trial = make_trial(setup, load)
    try:
        await trial.start(folder, setup.size)
        await asyncio.sleep(setup.before)
        try:
            async with asyncio.timeout(patience):
                moved = await trial.move(MIRROR, MoveLink(load.bandwidth, unshaped))
        except TimeoutError:
            verdict = await trial.judge(list(trial.disks.values()))
            return Result(patience, 0, None, False, sound(verdict))
        gap = await arrived(trial)
        verdict = await trial.judge([Path(moved.location)])
        good = gap is not None and sound(verdict)
        return Result(sum(moved.phases.values()), moved.sent or 0, gap, True, good)
    finally:
        await trial.close()


def command(trial: QemuTrial, role: str, *words: str) -> list[str]:
    given = trial.host_options(role)
    options = [word for key in given for word in ("--hypervisor-opt", f"{key}={given[key]}")]
    return [sys.executable, "-m", "vmferry", *words, "--json", *options]


def event_of(process: subprocess.Popen[str], key: str, value: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event.get(key) == value:
            return event
    raise RuntimeError(f"the process ended before {value}")


async def three_phases(setup: Setup, load: Load, folder: Path) -> Result:
    trial = make_trial(setup, load)
    agent = source = None
    try:
        await trial.start(folder, setup.size)
        (folder / "pool").mkdir()
        where = ("--pool", str(folder / "pool"), "--state-dir", str(folder / "there"))
        serve = command(trial, "destination", "serve", "tcp://127.0.0.1:0", *where)
        agent = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
        said = await asyncio.to_thread(event_of, agent, "name", "listening")
        run = ("run", trial.options.guest, said["facts"]["address"], "--hypervisor", "qemu")
        await asyncio.sleep(setup.before)
        source = subprocess.Popen(
            [
                *command(trial, "source", *run, "--state-dir", str(folder / "here")),
                *(
                    "--compression",
                    "none",
                    "--bandwidth",
                    str(load.bandwidth),
                    "--block-size",
                    "4KiB",
                ),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        summary = await asyncio.to_thread(event_of, source, "event", "finished")
        good = summary["outcome"] == "done"
        gap = await arrived(trial) if good else None
        disk = folder / "pool" / f"{trial.options.guest}-disk0.raw"
        verdict = await trial.judge([disk]) if good else None
        return Result(
            sum(summary["phases"].values()),
            summary["sent"],
            gap,
            good,
            verdict is not None and gap is not None and sound(verdict),
        )
    finally:
        for process in (source, agent):
            if process is not None:
                process.kill()
                process.communicate()
        await trial.close()


def row(name: str, results: list[Result]) -> str:
    done = [one for one in results if one.finished]
    proof = "yes" if all(one.good for one in results) else "NO"
    if not done:
        shortest = min(one.total for one in results)
        return f"| {name} | not within {shortest:.0f} | - | - | {proof} |"
    total = statistics.median(one.total for one in done)
    moved = statistics.median(one.moved for one in done) / MIB
    gaps = sorted(1000 * one.gap for one in done if one.gap is not None)
    spread = f"{statistics.median(gaps):.0f} ({gaps[0]:.0f} to {gaps[-1]:.0f})" if gaps else "-"
    return f"| {name} | {total:.1f} | {moved:.0f} | {spread} | {proof} |"


USUAL = {
    "idle": Load("idle", {"idle": True}),
    "paced": Load("200 requests/s", {"write_rate": 200}),
    "fast": Load("as fast as it goes", {"write_rate": 0}),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=parse_size, default=128 * MIB)
    parser.add_argument("--memory", type=parse_size, default=64 * MIB)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--downtime-limit", type=parse_duration, default=0.03)
    parser.add_argument(
        "--bandwidth", type=parse_size, default=2 * MIB, help="of the slow link, /s"
    )
    parser.add_argument(
        "--slow-size", type=parse_size, default=32 * MIB, help="disk of the guest on the slow link"
    )
    parser.add_argument(
        "--guests", nargs="+", choices=(*USUAL, "slow"), default=(*USUAL, "slow"), help="which"
    )
    parser.add_argument("--slow-rounds", type=int, default=1)
    parser.add_argument("--device", choices=("virtio", "ide"), default="virtio")
    parser.add_argument(
        "--patience", type=float, default=5, help="of vmferry's time, for the native way"
    )
    parser.add_argument("--before", type=parse_duration, default=1.0)
    parser.add_argument("--folder", type=Path, help="where to make everything")
    return parser.parse_args()


async def compare(setup: Setup, load: Load, rounds: int, patience: float, where: Path) -> None:
    """Move a guest both ways in turn, and say what came of it."""
    ours: list[Result] = []
    theirs: list[Result] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="vm-", dir=where) as folder:
            ours.append(await three_phases(setup, load, Path(folder)))
        most = max(60.0, patience * ours[-1].total)
        with tempfile.TemporaryDirectory(prefix="vm-", dir=where) as folder:
            theirs.append(await native(setup, load, Path(folder), most))
    print(row(f"{load.name}: native", theirs))
    print(row(f"{load.name}: vmferry", ours), flush=True)


async def main() -> None:
    given = parse()
    setup = Setup(given.size, given.memory, given.downtime_limit, given.device, given.before)
    print("| guest | total s | MiB moved | gap ms, median (range) | nothing lost |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for key in given.guests:
        if key in USUAL:
            await compare(setup, USUAL[key], given.rounds, given.patience, given.folder)
    if "slow" not in given.guests:
        return
    fast = {"write_rate": 0, "read_ratio": 0, "part_ratio": 0, "memory_set": MIB}
    slow = Load("faster than its link", {**fast, "memory_fill": 4 * MIB}, given.bandwidth)
    setup = Setup(given.slow_size, 32 * MIB, given.downtime_limit, given.device, given.before)
    await compare(setup, slow, given.slow_rounds, given.patience, given.folder)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
