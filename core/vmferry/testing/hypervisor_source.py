"""The hypervisor contract where the guest is: descriptions, checks, departures."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from vmferry.api.findings import Severity
from vmferry.errors import GuestNotFound, GuestStopped
from vmferry.testing.checks import check, refuses
from vmferry.testing.hypervisor_base import (
    ABORT,
    ALL_DISKS,
    BEGIN,
    CHECK,
    CLEAN,
    DESTROY,
    GONE,
    LISTS,
    PATIENCE,
    RESUME,
    RUNS_ON,
    STATES,
    STOPPED,
    TIDY,
    digests,
    reach,
)
from vmferry.testing.hypervisor_bench import HypervisorBench


class DescribeConformance:
    """What may be asked without changing anything."""

    async def test_guest_is_listed(self, bench: HypervisorBench) -> None:
        """A running guest is among the guests."""
        check(
            bench.name in await bench.rig.source.guests(),
            "Names of the guests that run here.",
            f"{bench.name} runs and is not listed",
        )

    async def test_all_disks_are_described(self, bench: HypervisorBench) -> None:
        """Each disk is described with its size, and describing changes nothing."""
        described = {disk.name: disk.size for disk in bench.guest.disks}
        sizes = {name: path.stat().st_size for name, path in bench.rig.disks.items()}
        check(described == sizes, ALL_DISKS, f"{described} are described, it has {sizes}")
        check(not await bench.left_over("source"), ALL_DISKS, await bench.left_over("source"))

    async def test_description_survives_the_wire(self, bench: HypervisorBench) -> None:
        """The description is plain data."""
        kind = type(bench.guest)
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(bench.guest), type=kind)
        assert again == bench.guest
        assert bench.guest.hypervisor == bench.rig.source.name

    async def test_unknown_guest_is_told(self, bench: HypervisorBench) -> None:
        """Who asks for a guest that is not there hears which are."""
        with pytest.raises(GuestNotFound) as failure:
            await bench.rig.source.describe("no-such-guest")
        check(bench.name in failure.value.available, LISTS, str(failure.value))

    async def test_checks_change_nothing(self, bench: HypervisorBench) -> None:
        """A guest that can move may, and asking leaves no trace."""
        found = list(await bench.rig.source.check_departure(bench.guest))
        found += await bench.rig.destination.check_arrival(bench.guest)
        errors = [finding.text for finding in found if finding.severity is Severity.ERROR]
        check(not errors, CHECK, f"a guest that can move is refused: {errors}")
        for role in bench.before:
            check(not await bench.left_over(role), CHECK, await bench.left_over(role))

    async def test_taken_name_is_found(self, bench: HypervisorBench) -> None:
        """A host where a guest of that name runs refuses another."""
        found = await bench.rig.source.check_arrival(bench.guest)
        errors = [finding for finding in found if finding.severity is Severity.ERROR]
        check(errors, CHECK, f"{bench.name} runs on that host, and may come there")

    async def test_foreign_configuration_is_refused(self, bench: HypervisorBench) -> None:
        """A configuration that means nothing is a finding, not a crash."""
        guest = msgspec.structs.replace(bench.guest, config=b"\xff\x00 not yours")
        found = await bench.rig.destination.check_arrival(guest)
        errors = [finding for finding in found if finding.severity is Severity.ERROR]
        check(errors, CHECK, "a configuration that means nothing is accepted")


class DepartureConformance:
    """The source's side."""

    async def test_guest_runs_while_memory_is_sent(self, bench: HypervisorBench) -> None:
        """Departing and pre-copy leave the guest running."""
        departure, arrival = await reach(bench, "departed")
        check(await bench.runs("source"), BEGIN, "after depart the guest stands still")
        await arrival.abort()
        await departure.resume()
        if bench.rig.suspends_itself:
            return
        departure, _ = await reach(bench, "precopied")
        check(await bench.runs("source"), RUNS_ON, "after precopy the guest stands still")
        assert departure.progress.total == bench.guest.memory
        assert departure.progress.sent > 0

    async def test_suspended_guest_stands_still(self, bench: HypervisorBench) -> None:
        """No instruction of a suspended guest runs."""
        await reach(bench, "suspended")
        check(await bench.stands_still("source"), STOPPED, "the suspended guest makes progress")

    @pytest.mark.parametrize("state", STATES)
    async def test_guest_resumes(self, bench: HypervisorBench, state: str) -> None:
        """From each state of a departure the guest runs on, whole, and twice is no error."""
        departure, arrival = await reach(bench, state)
        await arrival.abort()
        await departure.resume()
        check(await bench.runs("source"), TIDY, f"resumed when {state}, the guest stands still")
        check(not await bench.left_over("source"), CLEAN, await bench.left_over("source"))
        await departure.resume()
        check(await bench.runs("source"), CLEAN, "resumed twice, the guest stands still")
        wrong = await bench.rig.verdict("source", bench.rig.disks)
        check(not wrong, RESUME, wrong)

    async def test_destroyed_guest_leaves_its_disks(self, bench: HypervisorBench) -> None:
        """The guest is gone, its disks are as they were."""
        departure, arrival = await bench.begin()
        await bench.push(departure, arrival)
        before = digests(bench.rig.disks)
        await bench.switch(departure, arrival)
        await departure.destroy()
        check(digests(bench.rig.disks) == before, DESTROY, "a disk of the source was changed")
        check(await bench.rig.progress("source") is None, DESTROY, "the guest is still there")
        assert bench.name not in await bench.rig.source.guests()
        await departure.destroy()
        check(await bench.runs("destination"), DESTROY, "it was the guest that went on")

    async def test_crash_is_told(self, bench: HypervisorBench) -> None:
        """A guest that crashes while it is sent is reported as such, in bounded time."""
        departure, arrival = await bench.begin(delay=0.002)
        receiving = asyncio.ensure_future(arrival.receive())
        sending = asyncio.ensure_future(departure.precopy())
        await asyncio.sleep(0.01)
        await bench.rig.crash()
        with refuses(GuestStopped, GONE):
            async with asyncio.timeout(PATIENCE):
                await sending
                await departure.suspend()
        receiving.cancel()
        await asyncio.wait([receiving])
        await departure.destroy()

    async def test_cancelled_precopy_leaves_a_guest(self, bench: HypervisorBench) -> None:
        """Cancelling does no harm."""
        departure, arrival = await bench.begin(delay=0.01)
        tasks = [asyncio.ensure_future(each) for each in (arrival.receive(), departure.precopy())]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=PATIENCE)
        await arrival.abort()
        await departure.resume()
        check(await bench.runs("source"), TIDY, "after a cancelled precopy it stands still")
        check(not await bench.left_over("destination"), ABORT, await bench.left_over("destination"))
