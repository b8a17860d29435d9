"""A world of two hosts, decided by a seed: what the engine runs in, and the judge of it."""

from __future__ import annotations

import asyncio
from random import Random

import msgspec
import numpy as np

from vmferry.api.volume import Geometry
from vmferry.simulation import chance, stamps
from vmferry.simulation.backend import SimBackend
from vmferry.simulation.disk import DiskParameters, SimDisk
from vmferry.simulation.exports import SimExporter, SimExports
from vmferry.simulation.guest import GuestState, SimGuest, Worker
from vmferry.simulation.host import SimHost
from vmferry.simulation.hypervisor import SimHypervisor, disk_name
from vmferry.simulation.lanes import LinkParameters
from vmferry.simulation.loop import VirtualLoop
from vmferry.simulation.memory import GuestMemory
from vmferry.simulation.network import SimNetwork
from vmferry.simulation.oracle import Findings, Oracle, Violation
from vmferry.simulation.process import ProcessDied, SimProcess
from vmferry.simulation.record import DiskRecord, Record
from vmferry.simulation.registry import SimRegistry
from vmferry.simulation.table import Kind
from vmferry.simulation.temper import HypervisorParameters
from vmferry.simulation.trace import Trace
from vmferry.simulation.tracker import SimTracker, TrackerParameters
from vmferry.simulation.volume import SimDriver, SimStorage
from vmferry.simulation.workload import Dice, Workload
from vmferry.units import KIB, MIB

__all__ = ["DESTINATION", "SOURCE", "World", "WorldParameters"]

SOURCE, DESTINATION = "alpha", "beta"
"""Names of the two hosts."""


class WorldParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What a world is like.

    Attributes:
        disks: how many disks a guest has.
        disk_size: bytes of each.
        sector_size: bytes of a sector.
        filled: share of each disk that has been written before the guest starts.
        pages: pages of guest memory.
        page_size: bytes of each.
        link: what the network is like.
        disk: what disks are like.
        far_disk: what those of the destination are like, if different.
        workload: what the guest does.
        tracker: what trackers are like.
        hypervisor: what the hypervisors are like.

    """

    disks: int = 1
    disk_size: int = 4 * MIB
    sector_size: int = 512
    filled: float = 0.6
    pages: int = 256
    page_size: int = 1 * KIB
    link: LinkParameters = LinkParameters()
    disk: DiskParameters = DiskParameters()
    far_disk: DiskParameters | None = None
    workload: Workload = Workload()
    tracker: TrackerParameters = TrackerParameters()
    hypervisor: HypervisorParameters = HypervisorParameters()


class World:
    """Two hosts, their network and disks, and guests. Make it on the ``VirtualLoop``.

    Attributes:
        seed: decides everything.
        parameters: what it is like.
        trace: all that happened.
        findings: all that should not have happened.
        hosts: by name.
        oracles: what is known of each guest, by name.

    """

    def __init__(self, seed: int, parameters: WorldParameters | None = None) -> None:
        self.seed = seed
        self.parameters = parameters or WorldParameters()
        self.trace = Trace()
        self.findings = Findings(self.trace)
        self.network = SimNetwork(self.parameters.link, self.random("network"), self.trace)
        self.exports = SimExports(self.trace)
        self.oracles: dict[str, Oracle] = {}
        self.hosts = {name: self._host(name) for name in (SOURCE, DESTINATION)}

    def random(self, name: str) -> Random:
        """The random stream of that name."""
        return chance.stream(self.seed, name)

    def _host(self, name: str) -> SimHost:
        far = self.parameters.far_disk if name == DESTINATION else None
        disk = far or self.parameters.disk
        storage = SimStorage(disk, self.random(f"{name}/disks"), self.trace)
        return SimHost(name, storage, self.random(f"{name}/backends"))

    # -- what the engine is given

    def process(self, host: str) -> SimProcess:
        """A process on a host."""
        return SimProcess(host, self.hosts[host].trouble)

    def registry(self, process: SimProcess) -> SimRegistry:
        """Plugins as that process sees them."""
        host, parameters = self.hosts[process.host], self.parameters
        random = self.random(f"{host.name}/tracker")
        return SimRegistry(
            lambda: SimDriver(host.storage, process),
            lambda: SimTracker(host.backends, process, random, parameters.tracker),
            lambda: SimHypervisor(host, process, self.oracles, self.exports, parameters.hypervisor),
        )

    def exporter(self, process: SimProcess) -> SimExporter:
        """Exports of that process."""
        return SimExporter(self.exports, process)

    # -- guests

    async def boot(self, name: str = "guest", host: str = SOURCE) -> SimGuest:
        """Make a guest with its disks on a host, and start it."""
        parameters, random = self.parameters, self.random(name)
        oracle = self._oracle(name)
        backends = []
        for number in range(parameters.disks):
            disk = self._disk(name, number, host)
            self._fill(disk, oracle.record, number, random)
            backends.append(await self._backend(disk.name, host))
        workers = [
            Worker(disk=number, dice=Dice(random.getrandbits(64)))
            for number in range(parameters.disks)
            for _ in range(parameters.workload.workers)
        ]
        memory = GuestMemory(parameters.pages, parameters.page_size)
        record = Record.load(oracle.record.dump())
        state = GuestState(name, parameters.workload, workers, record, memory.versions)
        guest = SimGuest(state, memory, backends, oracle, host)
        self.hosts[host].guests[name] = guest
        guest.run()
        return guest

    def _oracle(self, name: str) -> Oracle:
        sectors = self.parameters.disk_size // self.parameters.sector_size
        oracle = Oracle(
            name=name,
            record=Record([DiskRecord(sectors) for _ in range(self.parameters.disks)]),
            versions=np.zeros(self.parameters.pages, np.int32),
            findings=self.findings,
            trace=self.trace,
        )
        self.oracles[name] = oracle
        return oracle

    def _disk(self, guest: str, number: int, host: str) -> SimDisk:
        geometry = Geometry(self.parameters.disk_size, self.parameters.sector_size)
        return self.hosts[host].storage.add(disk_name(guest, number), geometry)

    def _fill(self, disk: SimDisk, record: Record, number: int, random: Random) -> None:
        """Write some stretches of a disk, as if long ago."""
        sector, content = disk.geometry.sector_size, disk.content.copy()
        sectors = disk.geometry.size // sector
        step = max(1, sectors // 32)
        for first in range(0, sectors, step):
            if random.random() < self.parameters.filled:
                count = min(step, sectors - first)
                write = record.submit(Kind.WRITE, number, first, count)
                record.acknowledge(write)
                data = stamps.encode(number, first, count, write, sector)
                content[first * sector :][: len(data)] = np.frombuffer(data, np.uint8)
        disk.fill(content)
        record.end_flush(record.begin_flush(number))

    async def _backend(self, disk: str, host: str) -> SimBackend:
        owner = self.hosts[host]
        volume = await owner.attach(disk, disk)
        owner.backends[disk] = SimBackend(volume.geometry, volume, owner.random)
        return owner.backends[disk]

    def guest(self, name: str = "guest") -> SimGuest | None:
        """The incarnation of a guest that runs."""
        for host in self.oracles[name].running:
            return self.hosts[host].guests.get(name)
        return None

    # -- the verdict

    async def settle(self, seconds: float = 60.0) -> None:
        """Let running guests finish what they have begun, and do nothing more."""
        for name in self.oracles:
            guest = self.guest(name)
            try:
                async with asyncio.timeout(seconds):
                    if guest:
                        await guest.halt()
            except TimeoutError:
                self.findings.add("stuck", f"{name} waits for its disk for {seconds:g} s")

    def check(self) -> list[Violation]:
        """Compare every guest, its memory and its plain disks with what they should be."""
        for name, oracle in self.oracles.items():
            guest = self.guest(name)
            if guest:
                self._check_guest(guest, oracle)
            else:
                self.findings.add("no-owner", f"{name} runs nowhere")
        loop = asyncio.get_running_loop()
        if isinstance(loop, VirtualLoop):
            for complaint in loop.complaints:
                if ProcessDied.__name__ not in complaint:
                    self.findings.add("complaint", complaint)
        return self.findings.violations

    def _check_guest(self, guest: SimGuest, oracle: Oracle) -> None:
        for page in guest.memory.wrong_pages():
            self.findings.add("memory", f"page {page} of {guest.name} is wrong")
        oracle.compare(guest.state.record, guest.memory.versions)
        if oracle.broken:
            return
        for number in range(len(guest.backends)):
            volume = self.hosts[guest.host].volumes.get(disk_name(guest.name, number))
            if volume and guest.backends[number].target is volume:
                self.check_disk(oracle, number, volume.disk)
            else:
                self.findings.add("not-local", f"disk {number} of {guest.name} is on no plain disk")

    def check_disk(
        self, oracle: Oracle, number: int, disk: SimDisk, *, crashed: bool = False
    ) -> None:
        """Compare a plain disk with what the guest was told.

        With ``crashed`` what the guest did not flush may be gone.
        """
        seen = stamps.decode(disk.view, number, 0, disk.geometry.sector_size)
        for complaint in oracle.record.check(number, seen, crashed=crashed):
            self.findings.add(complaint.kind, f"{disk.name}: {complaint.text}")

    def story(self, last: int = 40) -> str:
        """What was found, and the end of the trace without requests and frames."""
        found = "\n".join(f"  {violation}" for violation in self.findings.violations)
        kinds: tuple[str, ...] = ("runs", "stops", "connect", "cut", "stall", "refuse")
        kinds += ("expose", "withdraw")
        kinds += ("replay", "open", "remove", "violation", "engine")
        events = self.trace.lines(*kinds, last=last)
        happened = "\n".join(f"  {line}" for line in events)
        return f"world of seed {self.seed}\nfound:\n{found}\nhappened:\n{happened}"
