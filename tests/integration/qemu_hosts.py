"""A QEMU guest that checks itself, an agent, and ``migrate run``, below one folder."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from vmferry.api.trial import Verdict
from vmferry_hypervisors.qemu.trial import QemuTrial
from vmferry_hypervisors.qemu.workload.trial_options import QemuTrialOptions
from vmferry_support.qmp import Qmp

MIB = 1 << 20
PATIENCE = 120.0
SMALL: Mapping[str, Any] = {"memory": 16 * MIB, "memory_set": 2 * MIB, "memory_fill": 2 * MIB}


class QemuHosts:
    """Two hosts on this machine, one of which has a QEMU guest."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.trial = QemuTrial(msgspec.convert({**SMALL, **options}, QemuTrialOptions))
        self.pool_kind = "raw"
        self.agent: subprocess.Popen[str] | None = None
        self._started: list[subprocess.Popen[str]] = []

    async def start(self, size: int = 16 * MIB) -> None:
        await self.trial.start(self.folder, size)

    def _options(self, role: str) -> list[str]:
        given = self.trial.host_options(role)
        return [word for key in given for word in ("--hypervisor-opt", f"{key}={given[key]}")]

    def _popen(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "vmferry", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def serve(self, volume: str = "raw", url: str = "tcp://127.0.0.1:0") -> str:
        """Start the agent; returns its address."""
        self.pool_kind = volume
        pool = self.folder / "pool"
        pool.mkdir(exist_ok=True)
        self.agent = self._popen(
            *("serve", url, "--json", "--pool", str(pool), "--volume", volume),
            *("--state-dir", str(self.folder / "there"), *self._options("destination")),
        )
        return str(self.until(self.agent, name="listening")["facts"]["address"])

    def run(self, address: str, *options: str) -> subprocess.Popen[str]:
        """Begin to migrate; events come on stdout."""
        return self._popen(
            *("run", self.trial.options.guest, address, "--hypervisor", "qemu", "--json"),
            *("--state-dir", str(self.folder / "here"), *self._options("source"), *options),
        )

    def resume(self, job: str) -> subprocess.Popen[str]:
        """Begin to bring a migration to its end."""
        where = ("--state-dir", str(self.folder / "here"))
        return self._popen("resume", job, *where, *self._options("source"))

    @staticmethod
    def until(process: subprocess.Popen[str], **wanted: str) -> dict[str, Any]:
        """Read events up to one with these fields."""
        assert process.stdout is not None
        for line in process.stdout:
            event: dict[str, Any] = json.loads(line)
            if all(event.get(key) == value for key, value in wanted.items()):
                return event
        assert process.stderr is not None
        raise AssertionError(f"it ended before {wanted}: {process.stderr.read()}")

    async def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Exit code and complaints of a command, once it has ended."""
        _, errors = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
        return process.returncode, errors

    async def moved(self, *options: str, volume: str = "raw") -> dict[str, Any]:
        """Migrate the guest to the end; returns the source's summary."""
        process = self.run(await asyncio.to_thread(self.serve, volume), *options)
        summary = await asyncio.to_thread(self.until, process, event="finished")
        code, errors = await self.ended(process)
        assert code == 0, errors
        return summary

    @property
    def arrived(self) -> list[Path]:
        """The disks at the destination."""
        names = self.trial.disks
        guest, kind = self.trial.options.guest, self.pool_kind
        return [self.folder / "pool" / f"{guest}-{name}.{kind}" for name in names]

    async def until_true(self, condition: Callable[[], Any]) -> None:
        """Wait until the record says so."""
        async with asyncio.timeout(PATIENCE):
            while True:
                await asyncio.to_thread(self.trial.record.update)
                if condition():
                    return
                await asyncio.sleep(0.02)

    async def goes_on(self) -> None:
        """Wait until the guest has written some more."""
        await asyncio.to_thread(self.trial.record.update)
        before = self.trial.record.writes
        await self.until_true(lambda: self.trial.record.writes >= before + 10)

    async def left_in_qemu(self, role: str = "source") -> list[str]:
        """What a migration could have left in a QEMU: exports, bitmaps, nodes, settings."""
        async with await Qmp.connect(str(self.trial.control(role))) as qmp:
            found = [each["id"] for each in await qmp.execute("query-block-exports")]
            for node in await qmp.execute("query-named-block-nodes"):
                found += [each["name"] for each in node.get("dirty-bitmaps", ())]
            for each in await qmp.execute("query-migrate-capabilities"):
                if each["state"]:
                    found.append(each["capability"])
            parameters = await qmp.execute("query-migrate-parameters")
            found += ["downtime-limit"] * (parameters["downtime-limit"] != 300)
        return found

    async def judge_here(self) -> Verdict:
        """The verdict on the disks at the source."""
        return await self.trial.judge(list(self.trial.disks.values()))

    async def judge_there(self) -> Verdict:
        """The verdict on the disks at the destination."""
        return await self.trial.judge(self.arrived)

    async def close(self) -> None:
        await self.trial.close()
        for process in self._started:
            process.kill()
            await asyncio.to_thread(process.communicate)
