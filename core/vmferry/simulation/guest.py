"""A guest: registers, memory, and workers that read and write its disks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from vmferry.simulation import stamps
from vmferry.simulation.backend import Op, SimBackend
from vmferry.simulation.memory import GuestMemory
from vmferry.simulation.oracle import Oracle
from vmferry.simulation.record import ReadStart, Record
from vmferry.simulation.table import Kind
from vmferry.simulation.workload import Dice, Workload

__all__ = ["GuestState", "SimGuest", "Worker"]


class Worker(msgspec.Struct):
    """One thread of a guest.

    Attributes:
        disk: number of the disk it works on.
        dice: its chance.
        op: its request that was not answered, as far as it knows.
        done: requests it has had answered.

    """

    disk: int
    dice: Dice
    op: Op | None = None
    done: int = 0


class GuestState(msgspec.Struct):
    """All of a guest but its pages: what a hypervisor moves while the guest stands still."""

    name: str
    workload: Workload
    workers: list[Worker]
    record: Record
    versions: np.ndarray
    stopped_at: float = 0.0

    def dump(self) -> dict[str, Any]:
        """For ``msgpack``."""
        return {
            "name": self.name,
            "workload": msgspec.to_builtins(self.workload),
            "workers": msgspec.to_builtins(self.workers),
            "record": self.record.dump(),
            "versions": self.versions.tobytes(),
            "stopped_at": self.stopped_at,
        }

    @classmethod
    def load(cls, data: dict[str, Any]) -> GuestState:
        """What ``dump`` returned."""
        return cls(
            name=data["name"],
            workload=msgspec.convert(data["workload"], Workload),
            workers=msgspec.convert(data["workers"], list[Worker]),
            record=Record.load(data["record"]),
            versions=np.frombuffer(data["versions"], np.int32).copy(),
            stopped_at=data["stopped_at"],
        )


class SimGuest:
    """One incarnation of a guest on one host: paused when made.

    Between two steps of a worker it may be suspended for any time. Requests it has outstanding
    are then answered by the backend, but the guest learns of it only when it runs again. Another
    incarnation, made from its state, submits them again.

    Args:
        state: from the guest's beginning, or from another incarnation.
        memory: its pages.
        backends: its disks on this host, by number.
        oracle: what the world knows of it.
        host: name of the host.

    """

    def __init__(
        self,
        state: GuestState,
        memory: GuestMemory,
        backends: Sequence[SimBackend],
        oracle: Oracle,
        host: str,
    ) -> None:
        self.state, self.memory, self.backends = state, memory, backends
        self.oracle, self.host = oracle, host
        self.running = False
        self._halting = False
        self._resumed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """Its name."""
        return self.state.name

    def run(self) -> None:
        """Begin, or go on after ``suspend``. Harmless if it runs."""
        if self.running:
            return
        self.running = True
        self.oracle.started(self.host)
        self._resumed.set()
        if not self._tasks:
            create = asyncio.get_running_loop().create_task
            self._tasks = [create(self._work(worker)) for worker in self.state.workers]

    def suspend(self) -> None:
        """Stand still: no instruction after this call. Harmless if it does."""
        if self.running:
            self.running = False
            self._resumed.clear()
            self.state.stopped_at = asyncio.get_running_loop().time()
            self.oracle.stopped(self.host)

    def destroy(self) -> None:
        """Cease to be; what it had outstanding is dropped."""
        self.suspend()
        for task in self._tasks:
            task.cancel()
        for backend in self.backends:
            backend.drop()

    async def halt(self) -> None:
        """Let every worker finish what it does and stop."""
        self._halting = True
        await asyncio.gather(*self._tasks)

    async def _gate(self) -> None:
        while not self.running:
            await self._resumed.wait()

    async def _work(self, worker: Worker) -> None:
        await self._gate()
        while worker.op or not self._halting:
            if not worker.op:
                await asyncio.sleep(self.state.workload.pause(worker.dice, worker.done))
                await self._gate()
                worker.op = self._submit(worker)
            await self._complete(worker, worker.op)

    def _submit(self, worker: Worker) -> Op:
        geometry = self.backends[worker.disk].geometry
        sectors = geometry.size // geometry.sector_size
        chosen = self.state.workload.choose(worker.dice, sectors, geometry.sector_size)
        op = Op(chosen[0], worker.disk, *chosen[1:])
        for _ in range(self.state.workload.pages):
            page = worker.dice.below(len(self.memory))
            self.memory.write(page)
            self.oracle.versions[page] += 1
        op.number = self._enter(op)
        self.oracle.trace.add("submit", op.kind.name, op.disk, op.first, op.count, op.number)
        return op

    def _enter(self, op: Op) -> int:
        ours, worlds = self.state.record, self.oracle.record
        if self.oracle.broken:
            return 0
        if op.writes:
            number = worlds.submit(op.kind, op.disk, op.first, op.count)
            self.oracle.same_number(number, ours.submit(op.kind, op.disk, op.first, op.count))
            return number
        if op.kind is Kind.FLUSH:
            number = worlds.begin_flush(op.disk)
            self.oracle.same_number(number, ours.begin_flush(op.disk))
            return number
        return 0

    async def _complete(self, worker: Worker, op: Op) -> None:
        start = self._begin_read(op)
        try:
            data = await self.backends[op.disk].submit(op)
        except OSError as error:
            await self._gate()
            self.oracle.findings.add("io-error", f"{self.name} was given {error} for {op}")
            worker.op = None
            return
        await self._gate()
        self._acknowledge(worker, op, start, data)

    def _begin_read(self, op: Op) -> ReadStart | None:
        if op.kind is not Kind.READ or self.oracle.broken:
            return None
        place = (op.disk, op.first, op.count)
        self.oracle.record.begin_read(*place)
        return self.state.record.begin_read(*place)

    def _acknowledge(
        self, worker: Worker, op: Op, start: ReadStart | None, data: bytearray | None
    ) -> None:
        worker.op = None
        worker.done += 1
        self.oracle.trace.add("answer", op.kind.name, op.disk, op.first, op.count, op.number)
        if self.oracle.broken:
            return
        for record in (self.state.record, self.oracle.record):
            if op.writes:
                record.acknowledge(op.number)
            elif op.kind is Kind.FLUSH:
                record.end_flush(op.number)
        if start and data is not None:
            self._verify(op, start, data)

    def _verify(self, op: Op, start: ReadStart, data: bytearray) -> None:
        sector = self.backends[op.disk].geometry.sector_size
        seen = stamps.decode(memoryview(data), op.disk, op.first, sector)
        for complaint in self.oracle.record.end_read(start, seen):
            self.oracle.findings.add("bad-read", f"{self.name} on {self.host}: {complaint.text}")
        self.state.record.end_read(start, seen)

    def finish_writes(self) -> None:
        """Take outstanding writes and flushes for answered, as emulated disks do when drained."""
        for worker in self.state.workers:
            if worker.op and worker.op.kind is not Kind.READ:
                self._acknowledge(worker, worker.op, None, None)
