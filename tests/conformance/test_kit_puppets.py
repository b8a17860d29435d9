"""The hypervisor kit fails hypervisors broken on purpose, without a process or a lab."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vmferry.cli.scaffold.samples.hypervisor import (
    PuppetArrival,
    PuppetDeparture,
    PuppetHypervisor,
)
from vmferry.cli.scaffold.samples.machine import FileDisk
from vmferry.cli.scaffold.samples.test_hypervisor import PuppetRig
from vmferry.dirtymap import DirtyMap
from vmferry.errors import HypervisorError
from vmferry.testing.hypervisor import HypervisorBench, HypervisorConformance


class IgnoresWhatIsPending(PuppetArrival):
    """Takes the local disk for whole, and lets the guest read and write it at once."""

    async def show_pending(self, disk, pending):
        await self._machine.attach(FileDisk(disk.location))


class ClearsTheMap(PuppetArrival):
    async def show_pending(self, disk, pending):
        pending.clear_all()


class RunsWhenShown(PuppetArrival):
    async def show_pending(self, disk, pending):
        await self._machine.disk.read(0, 512)


class LosesPages(PuppetArrival):
    async def activate(self):
        for page in range(len(self._machine.state.pages)):
            self._machine.put(page, bytes(4096))
        await super().activate()


class BelievesAnyEnd(PuppetArrival):
    async def receive(self):
        try:
            await super().receive()
        except HypervisorError:
            return


class StaysOnTheExport(PuppetArrival):
    async def pivot(self, disk):
        return


class AbortsNothing(PuppetArrival):
    async def abort(self):
        return


class RunsOn(PuppetDeparture):
    async def suspend(self):
        return


class ForgetsOddPages(PuppetDeparture):
    async def _send_dirty(self):
        self._machine.dirty = {page for page in self._machine.dirty if page % 2 == 0}
        await super()._send_dirty()


class ForgetsItsDisk(PuppetHypervisor):
    async def describe(self, name):
        return msgspec.structs.replace(await super().describe(name), disks=())


class TakesAnyName(PuppetHypervisor):
    def _plan(self, guest):
        return super()._plan(msgspec.structs.replace(guest, name=f"{guest.name}!"))


def with_parts(departure: Any = PuppetDeparture, arrival: Any = PuppetArrival) -> Any:
    class Broken(PuppetHypervisor):
        async def depart(self, guest, stream):
            sound = await super().depart(guest, stream)
            sound.__class__ = departure
            return sound

        async def arrive(self, guest, disks, stream):
            sound = await super().arrive(guest, disks, stream)
            sound.__class__ = arrival
            return sound

    return Broken


PENDING = "test_pending_blocks_are_used_through_the_export"
FAULTS: list[tuple[Any, str, tuple[Any, ...]]] = [
    (with_parts(arrival=IgnoresWhatIsPending), PENDING, (1,)),
    (with_parts(arrival=IgnoresWhatIsPending), PENDING, (2,)),
    (with_parts(arrival=ClearsTheMap), PENDING, (2,)),
    (with_parts(arrival=LosesPages), "test_nothing_is_lost_on_the_way", ()),
    (with_parts(arrival=BelievesAnyEnd), "test_garbage_is_refused", ()),
    (with_parts(arrival=StaysOnTheExport), "test_pivot_leaves_the_export", ()),
    (with_parts(arrival=AbortsNothing), "test_abort_leaves_nothing", ("departed",)),
    (with_parts(RunsOn), "test_suspended_guest_stands_still", ()),
    (with_parts(ForgetsOddPages), "test_nothing_is_lost_on_the_way", ()),
    (with_parts(arrival=AbortsNothing), "test_any_sequence_of_steps_can_be_undone", ()),
    (ForgetsItsDisk, "test_all_disks_are_described", ()),
    (TakesAnyName, "test_taken_name_is_found", ()),
]


def _name(value: Any) -> str:
    return value.removeprefix("test_") if isinstance(value, str) else ""


async def run(hypervisor: Any, test: str, arguments: tuple[Any, ...], folder: Any) -> None:
    class Rig(PuppetRig):
        pass

    Rig.hypervisor = hypervisor
    bench = HypervisorBench(Rig(folder), folder)
    try:
        await bench.start()
        await getattr(HypervisorConformance(), test)(bench, *arguments)
    finally:
        await bench.close()


@pytest.mark.mutant
@pytest.mark.parametrize(("hypervisor", "test", "arguments"), FAULTS, ids=_name)
async def test_fault_is_found(hypervisor, test, arguments, tmp_path):
    with pytest.raises(pytest.fail.Exception, match=r'vmferry\.api\.\w+ says: "'):
        await run(hypervisor, test, arguments, tmp_path)


@pytest.mark.parametrize(
    ("test", "arguments"), sorted({fault[1:] for fault in FAULTS}, key=str), ids=_name
)
async def test_sound_hypervisor_passes(test, arguments, tmp_path):
    await run(PuppetHypervisor, test, arguments, tmp_path)


def test_maps_are_compared_by_what_they_hold():
    one, other = DirtyMap(8192, 4096), DirtyMap(8192, 4096)
    assert {"disk0": one} == {"disk0": other}
    one.mark(0, 1)
    assert {"disk0": one} != {"disk0": other}
