"""The qemu hypervisor keeps the contract, with a real QEMU and a guest without operating system."""

import os
import signal
import tempfile
from pathlib import Path

import msgspec
import psutil
import pytest

from vmferry.api.findings import Severity
from vmferry.testing.hypervisor import HypervisorConformance, HypervisorRig
from vmferry.testing.hypervisor_base import reach
from vmferry_hypervisors.qemu.driver import QemuHypervisor
from vmferry_hypervisors.qemu.options import QemuOptions
from vmferry_hypervisors.qemu.trial import ROLES, QemuTrial
from vmferry_hypervisors.qemu.workload.trial_options import QemuTrialOptions
from vmferry_support.qmp import Qmp, QmpError

pytestmark = [pytest.mark.guest, pytest.mark.real, pytest.mark.timeout(900)]

MIB = 1 << 20
OPTIONS = QemuTrialOptions(
    memory=16 * MIB, memory_set=2 * MIB, memory_fill=4 * MIB, write_rate=300, prefill=0.3
)


class QemuRig(HypervisorRig):
    """A trial's guest; watched in its memory, through a monitor that the plugin does not use."""

    suspends_itself = True

    def __init__(self, folder):
        self._folder = folder
        self._trial = QemuTrial(OPTIONS)

    async def start(self):
        name = await self._trial.start(self._folder, 8 * MIB)
        self.source, self.destination = (
            QemuHypervisor(
                msgspec.convert(self._trial.host_options(role), QemuOptions, strict=False)
            )
            for role in ROLES
        )
        return name

    @property
    def disks(self):
        return self._trial.disks

    async def progress(self, role):
        path = self._trial.control(role)
        if not path.exists():
            return None
        try:
            async with await Qmp.connect(str(path), timeout=10) as qmp:
                said = await qmp.execute(
                    "human-monitor-command", command_line="xp /1wd 0x5004", timeout=10
                )
            return int(said.split(":")[1])
        except QmpError:
            return None

    def _processes(self, role):
        wanted = str(self._folder / role) + "/"
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if wanted in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        return found

    async def traces(self, role):
        folder = self._folder / role
        # a QEMU that is killed leaves the socket that the command line asked for
        files = {path.name for path in folder.rglob("*") if path.suffix != ".control"}
        running = {f"process {pid}" for pid in self._processes(role)}
        wanted = {f"descriptor {name}" for name in map(_target, os.scandir("/proc/self/fd"))}
        return frozenset(files | running | {name for name in wanted if str(folder) in name})

    async def verdict(self, role, disks):
        verdict = await self._trial.judge([disks[name] for name in self.disks])
        return "" if verdict.good else str(verdict)

    async def crash(self):
        for pid in self._processes("source"):
            os.kill(pid, signal.SIGKILL)

    async def close(self):
        await self._trial.close()


def _target(entry):
    try:
        return os.readlink(entry.path)
    except OSError:
        return ""


class TestQemu(HypervisorConformance):
    essential = (
        "test_guest_resumes[suspended]",
        "test_guest_resumes[transferred]",
        "test_broken_stream[0.4]",
        "test_broken_channels[0.6]",
        "test_channels_carry_all",
        "test_pending_blocks_are_used_through_the_export[1]",
        "test_cancelled_arrive_leaves_nothing",
        "test_crash_is_told",
    )

    @pytest.fixture
    def rig(self):
        with tempfile.TemporaryDirectory(prefix="vm-") as folder:
            yield QemuRig(Path(folder))

    @pytest.mark.parametrize("state", ["departed", "suspended", "transferred"])
    async def test_a_departure_without_its_agent_is_resumed(self, bench, state):
        """As if the agent had been killed: its sockets are closed, nobody tells QEMU anything."""
        departure, arrival = await reach(bench, state)
        await departure._carried.close()
        recovered = await bench.rig.source.recover(bench.guest)
        await recovered.resume()
        await recovered.resume()
        assert await bench.runs("source")
        await arrival.abort()
        await departure._end()
        found = await bench.rig.source.check_departure(bench.guest)
        assert not [each for each in found if each.severity is Severity.ERROR]
        assert not await bench.rig.verdict("source", bench.rig.disks)

    async def test_a_departure_without_its_agent_is_ended(self, bench):
        departure, arrival = await bench.begin()
        await bench.push(departure, arrival)
        await bench.switch(departure, arrival)
        await departure._end()
        for _ in range(2):
            recovered = await bench.rig.source.recover(bench.guest)
            await recovered.destroy()
        assert await bench.rig.progress("source") is None
        assert await bench.runs("destination")
