"""What several files of this folder use."""

import asyncio
import os
import time

import psutil
import pytest

from vmferry.api.guest import Disk
from vmferry.testing.hypervisor import HypervisorRig
from vmferry_hypervisors.process.checker import GuestRecord, check_guest
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.driver import ProcessHypervisor
from vmferry_hypervisors.process.folder import AttachedDisk, Definition, GuestFolder
from vmferry_hypervisors.process.image import create_disk
from vmferry_hypervisors.process.launch import launch
from vmferry_hypervisors.process.options import ProcessOptions
from vmferry_hypervisors.process.workload import Workload

MIB = 1 << 20
WORKLOAD = Workload(
    write_rate=400, read_ratio=0.2, zero_ratio=0.1, trim_ratio=0.05, prefill=0.3, memory_rate=2000
)


class ProcessRig(HypervisorRig):
    """Guests that are processes; watched through their memory and the kernel's process table."""

    hypervisor = ProcessHypervisor

    def __init__(self, folder):
        self._states = {role: folder / role for role in ("source", "destination")}
        self._disk = folder / "disk0.raw"
        self.source, self.destination = (
            self.hypervisor(ProcessOptions(state_dir=str(state), timeout=10))
            for state in self._states.values()
        )

    def _folder(self, role):
        return GuestFolder(self._states[role], "guest")

    @property
    def disks(self):
        return {"disk0": self._disk}

    async def start(self):
        create_disk(self._disk, 16 * MIB, WORKLOAD.unit, WORKLOAD.prefill)
        disk = Disk(name="disk0", size=16 * MIB, location=str(self._disk))
        attached = AttachedDisk(disk, f"file:{self._disk}")
        definition = Definition(name="guest", memory=16 * MIB, disks=(attached,), workload=WORKLOAD)
        await asyncio.to_thread(launch, self._states["source"], definition)
        await asyncio.to_thread(self._wait_for_writes)
        return "guest"

    def _wait_for_writes(self):
        while not self._folder("source").registers().writes:
            time.sleep(0.01)

    async def progress(self, role):
        if not self._processes(role):
            return None
        try:
            return self._folder(role).registers().requests
        except Exception:
            return None

    def _processes(self, role):
        """Found by their command lines, not by what the plugin wrote down."""
        wanted = str(self._states[role] / "guest")
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or []
            if wanted in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        return found

    async def traces(self, role):
        state = self._states[role]
        files = {str(path.relative_to(state)) for path in state.rglob("*")}
        mapped = {f"process {pid}" for pid in self._processes(role)}
        descriptors = {
            link for link in map(_target, os.scandir("/proc/self/fd")) if str(state) in link
        }
        return frozenset(files | mapped | descriptors)

    async def verdict(self, role, disks):
        folder = self._folder(role)
        await call(folder.path, Command("quiesce"), 10)
        folder.kill()
        consoles = [self._folder(each).console for each in self._states]
        verdict = check_guest(GuestRecord.read(folder.path), consoles, dict(disks))
        return "" if verdict.good else str(verdict)

    async def crash(self):
        self._folder("source").kill()

    async def close(self):
        for role in self._states:
            self._folder(role).kill()


def _target(entry):
    try:
        return os.readlink(entry.path)
    except OSError:
        return ""


@pytest.fixture(scope="session")
def process_rig():
    """The class of the rig for process guests."""
    return ProcessRig
