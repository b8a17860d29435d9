"""The hypervisor kit finds faults put in on purpose, each by the check that is meant for it."""

import asyncio
import os
import signal

import msgspec
import psutil
import pytest

from vmferry.errors import ConnectionLost
from vmferry.testing import hypervisor_base
from vmferry.testing.checks import quote
from vmferry.testing.hypervisor import HypervisorBench, HypervisorConformance
from vmferry_hypervisors.process.arrival import ProcessArrival
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.departure import ProcessDeparture
from vmferry_hypervisors.process.driver import ProcessHypervisor

pytestmark = [pytest.mark.real, pytest.mark.mutant]


class RunsTooEarly(ProcessArrival):
    async def receive(self):
        await super().receive()
        await call(self._folder.path, Command("resume"), 10)


class BelievesAnything(ProcessArrival):
    async def _verify(self, memory, state):
        pass


class IgnoresTheEnd(ProcessArrival):
    async def receive(self):
        try:
            await super().receive()
        except ConnectionLost:
            self._complete = True


class LeavesProcess(ProcessArrival):
    async def abort(self):
        self._unmap()
        self._folder.remove(console=True)


class LeavesFiles(ProcessArrival):
    async def abort(self):
        self._unmap()
        self._folder.kill()


class StaysOnExport(ProcessArrival):
    async def pivot(self, disk):
        pass


class SuspendsNothing(ProcessDeparture):
    async def suspend(self):
        self._suspended = True


class LosesLastPages(ProcessDeparture):
    async def suspend(self):
        while self._mapped.count_dirty() < 8:  # noqa: ASYNC110 -- there are last pages to lose
            await asyncio.sleep(0.001)
        await super().suspend()

    async def transfer(self):
        self._mapped.harvest()
        await super().transfer()


class ForgetsToResume(ProcessDeparture):
    async def resume(self):
        self._folder.signal(signal.SIGCONT)
        self._end()


class ResumesOnlySuspended(ProcessDeparture):
    async def resume(self):
        if not self._suspended:
            await self.destroy()
        await super().resume()


class DestroysDisk(ProcessDeparture):
    async def destroy(self):
        for each in self._folder.definition().disks if self._folder.defined else ():
            os.truncate(each.disk.location, 0)
        await super().destroy()


class DestroysNothing(ProcessDeparture):
    async def destroy(self):
        self._end()


class MissesCrash(ProcessDeparture):
    def _check_alive(self):
        pass

    async def suspend(self):
        self._suspended = True


class ForgetsDisk(ProcessHypervisor):
    async def describe(self, name):
        return msgspec.structs.replace(await super().describe(name), disks=())


class ChecksNothing(ProcessHypervisor):
    async def check_arrival(self, guest):
        return ()


def with_parts(departure=ProcessDeparture, arrival=ProcessArrival):
    """A hypervisor that is sound but for one end of the migration."""

    class Broken(ProcessHypervisor):
        async def depart(self, guest, stream):
            sound = await super().depart(guest, stream)
            sound.__class__ = departure
            return sound

        async def arrive(self, guest, disks, stream):
            sound = await super().arrive(guest, disks, stream)
            sound.__class__ = arrival
            return sound

    return Broken


FAULTS = {
    "runs before activate": (
        with_parts(arrival=RunsTooEarly),
        "test_received_guest_has_not_run",
    ),
    "suspend stops nothing": (
        with_parts(SuspendsNothing),
        "test_suspended_guest_stands_still",
    ),
    "last dirty pages are lost": (
        with_parts(LosesLastPages, BelievesAnything),
        "test_nothing_is_lost_on_the_way",
    ),
    "early end of the stream is taken for a whole guest": (
        with_parts(arrival=IgnoresTheEnd),
        "test_garbage_is_refused",
    ),
    "resume forgets": (with_parts(ForgetsToResume), "test_guest_resumes", "suspended"),
    "resume wants a suspended guest": (
        with_parts(ResumesOnlySuspended),
        "test_guest_resumes",
        "precopied",
    ),
    "destroy truncates the disk": (
        with_parts(DestroysDisk),
        "test_destroyed_guest_leaves_its_disks",
    ),
    "destroy leaves the guest": (
        with_parts(DestroysNothing),
        "test_destroyed_guest_leaves_its_disks",
    ),
    "a crash goes unnoticed": (with_parts(MissesCrash), "test_crash_is_told"),
    "abort leaves a process": (
        with_parts(arrival=LeavesProcess),
        "test_abort_leaves_nothing",
        "departed",
    ),
    "abort leaves files": (
        with_parts(arrival=LeavesFiles),
        "test_abort_leaves_nothing",
        "transferred",
    ),
    "pivot changes nothing": (
        with_parts(arrival=StaysOnExport),
        "test_pivot_leaves_the_export",
    ),
    "a disk is left out": (ForgetsDisk, "test_all_disks_are_described"),
    "any name may come": (ChecksNothing, "test_taken_name_is_found"),
    "any configuration may come": (ChecksNothing, "test_foreign_configuration_is_refused"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_is_found(fault, process_rig, tmp_path):
    broken, name, *arguments = FAULTS[fault]

    class Rig(process_rig):
        hypervisor = broken

    bench = HypervisorBench(Rig(tmp_path), tmp_path)
    try:
        await bench.start()
        with pytest.raises(pytest.fail.Exception):
            await getattr(HypervisorConformance(), name)(bench, *arguments)
    finally:
        kill_strays(tmp_path)
        await bench.close()


def kill_strays(folder):
    """End what a fault left alive and its own records no longer know."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()):
            process.kill()


def test_quotes_stand_in_the_contract():
    named = vars(hypervisor_base).items()
    sentences = [value for name, value in named if name.isupper() and isinstance(value, str)]
    assert len(sentences) > 10
    for sentence in sentences:
        assert quote(sentence)
