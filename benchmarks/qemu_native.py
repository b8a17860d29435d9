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
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vmferry.api import Verdict
from vmferry.units import MIB, parse_duration, parse_size
from vmferry_hypervisors.qemu.launch import fill_command, start_qemu
from vmferry_hypervisors.qemu.trial import QemuTrial
from vmferry_hypervisors.qemu.workload.trial_options import QemuTrialOptions
from vmferry_support.qmp import Listener, Qmp

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
        "prefill": 1.0,
        **load.options,
    }
    return QemuTrial(msgspec.convert(options, QemuTrialOptions))


async def until(events: Listener, name: str, **data: Any) -> None:
    def is_it(event: Any) -> bool:
        if event.data.get("status") == "failed":
            raise RuntimeError(f"QEMU's migration failed at {event}")
        return event.name == name and all(event.data.get(key) == data[key] for key in data)

    await events.wait(is_it, timeout=None)


class Native:
    """mirror, migrate, cancel the mirror, go on."""

    def __init__(self, trial: QemuTrial, setup: Setup, bandwidth: int, patience: float) -> None:
        self.trial, self.setup, self.bandwidth = trial, setup, bandwidth
        self.patience = patience
        self.copy = trial.folder / "copy-disk0.raw"
        self.moved = 0

    async def prepare(self) -> None:
        """The destination's QEMU, waiting, with a local disk that is exported for writing."""
        self.copy.touch()
        os.truncate(self.copy, self.setup.size)
        trial = self.trial
        node = {"driver": "file", "filename": str(self.copy), "discard": "unmap"}
        top = {"driver": "raw", "node-name": "disk0-node", "file": node, "discard": "unmap"}
        values = {
            "name": trial.options.guest,
            "uuid": "00000000-0000-0000-0000-000000000001",
            "memory": str(trial.options.memory >> 20),
            "vcpus": "1",
            "machine": trial.options.machine,
            "disk:disk0": "disk0-node",
        }
        words = fill_command(trial.command("destination"), values)
        words += ["-blockdev", json.dumps(top), "-S", "-incoming", "defer"]
        started = await start_qemu(words, trial.socket("destination"))
        await (await started.connected(60)).close()
        started.forget()

    async def run(self) -> tuple[float, bool]:
        began = time.perf_counter()
        await self.prepare()
        trial = self.trial
        async with (
            await Qmp.connect(str(trial.socket("source"))) as source,
            await Qmp.connect(str(trial.socket("destination"))) as there,
        ):
            with source.listen() as events, there.listen("MIGRATION") as arrived:
                try:
                    async with asyncio.timeout(self.patience):
                        await self._mirror(source, there, events)
                except TimeoutError:
                    await self._give_up(source, events)
                    return time.perf_counter() - began, False
                await self._switch(source, there, events, arrived)
                return time.perf_counter() - began, True

    async def _give_up(self, source: Qmp, events: Listener) -> None:
        """End the mirror as it is; the guest goes on where it was."""
        (job,) = await source.execute("query-block-jobs")
        self.moved = job["offset"]
        await source.execute("block-job-cancel", device="copying", force=True)
        await until(events, "BLOCK_JOB_CANCELLED")
        await source.execute("blockdev-del", node_name="copy")
        if not (await source.execute("query-status"))["running"]:
            raise RuntimeError("the guest does not run after its mirror was ended")

    async def _mirror(self, source: Qmp, there: Qmp, events: Listener) -> None:
        port = str(free_port())
        inet = {"host": "127.0.0.1", "port": port}
        await there.execute("nbd-server-start", addr={"type": "inet", "data": inet})
        await there.execute(
            "block-export-add", type="nbd", id="copy", node_name="disk0-node", writable=True,
            name="copy",
        )  # fmt: skip
        nbd = {"driver": "nbd", "node-name": "copy", "export": "copy"}
        await source.execute("blockdev-add", {**nbd, "server": {"type": "inet", **inet}})
        await source.execute(
            "blockdev-mirror", job_id="copying", device="disk0-node", target="copy", sync="full",
            speed=self.bandwidth, granularity=4096,
        )  # fmt: skip
        await until(events, "BLOCK_JOB_READY")

    async def _switch(self, source: Qmp, there: Qmp, events: Listener, arrived: Listener) -> None:
        wanted = ("events", "return-path", "pause-before-switchover")
        on = [{"capability": name, "state": True} for name in wanted]
        await source.execute("migrate-set-capabilities", capabilities=on)
        late = {"capability": "late-block-activate", "state": True}
        await there.execute("migrate-set-capabilities", capabilities=[*on[:2], late])
        limits = {"max-bandwidth": self.bandwidth, "downtime-limit": self.limit}
        await source.execute("migrate-set-parameters", limits)
        uri = f"tcp:127.0.0.1:{free_port()}"
        await there.execute("migrate-incoming", uri=uri)
        await source.execute("migrate", uri=uri)
        await until(events, "MIGRATION", status="pre-switchover")
        (job,) = await source.execute("query-block-jobs")
        await source.execute("block-job-cancel", device="copying")
        await until(events, "BLOCK_JOB_COMPLETED")
        await there.execute("nbd-server-stop")
        await source.execute("migrate-continue", state="pre-switchover")
        await until(events, "MIGRATION", status="completed")
        await until(arrived, "MIGRATION", status="completed")
        await there.execute("cont")
        ram = (await source.execute("query-migrate"))["ram"]
        self.moved = job["offset"] + ram["transferred"]

    @property
    def limit(self) -> int:
        return round(1000 * self.setup.downtime_limit)


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


async def native(setup: Setup, load: Load, folder: Path, patience: float) -> Result:
    trial = make_trial(setup, load)
    try:
        await trial.start(folder, setup.size)
        way = Native(trial, setup, load.bandwidth, patience)
        await asyncio.sleep(setup.before)
        total, finished = await way.run()
        gap = await arrived(trial) if finished else None
        disk = way.copy if finished else trial.disks["disk0"]
        verdict = await trial.judge([disk])
        good = sound(verdict) and (gap is not None or not finished)
        return Result(total, way.moved, gap, finished, good)
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
                *("--hypervisor-opt", f"downtime_limit={setup.downtime_limit}"),
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
        moved = statistics.median(one.moved for one in results) / MIB
        return f"| {name} | not within {shortest:.0f} | {moved:.0f} | - | {proof} |"
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
