"""The hypervisor contract where the guest goes: arrivals, and streams that fail or lie."""

from __future__ import annotations

import asyncio

import pytest

from vmferry.api.hypervisor import Arrival, Departure
from vmferry.api.plugin import Grade
from vmferry.errors import VmferryError
from vmferry.testing.checks import check, refuses
from vmferry.testing.hypervisor_base import (
    ABORT,
    ACTIVE,
    CHANNELS,
    DOWNTIME,
    ENDS,
    FINISH,
    NOT_CHANGED,
    NOT_READ,
    NOTHING,
    PATIENCE,
    PIVOT,
    RESUME,
    SHOWN,
    STOPPED,
    TIDY,
    WHOLE,
    reach,
)
from vmferry.testing.hypervisor_bench import HypervisorBench
from vmferry.testing.streams import stream_pair


class ArrivalConformance:
    """The destination's side."""

    async def test_received_guest_has_not_run(self, bench: HypervisorBench) -> None:
        """Between receive and activate nothing runs, nothing is read."""
        departure, arrival = await bench.begin()
        await bench.push(departure, arrival)
        check(await bench.stands_still("destination"), WHOLE, "it runs before activate")
        check(bench.requests == 0, NOT_READ, f"it made {bench.requests} disk requests")
        check(await bench.stands_still("source"), STOPPED, "it runs at the source meanwhile")

    async def test_guest_goes_on_where_it_was(self, bench: HypervisorBench) -> None:
        """The activated guest goes on from where it was suspended."""
        departure, arrival = await bench.begin()
        await bench.push(departure, arrival)
        reached = await bench.rig.progress("source") or 0
        started = asyncio.get_running_loop().time()
        await bench.switch(departure, arrival)
        check(await bench.runs("destination"), ACTIVE, "activated, it stands still")
        now = await bench.rig.progress("destination") or 0
        check(now >= reached, ACTIVE, f"it was at {reached} and is at {now}")
        check(await bench.stands_still("source"), STOPPED, "it runs at the source as well")
        await self._downtime(bench, arrival, started)

    @staticmethod
    async def _downtime(bench: HypervisorBench, arrival: Arrival, started: float) -> None:
        if bench.rig.destination.capabilities.guest_downtime is Grade.NONE:
            return
        downtime = await arrival.guest_downtime()
        sane = downtime is not None and 0 < downtime < PATIENCE
        check(sane, DOWNTIME, f"it says {downtime} s, {started} s after the loop's start")

    async def test_nothing_is_lost_on_the_way(self, bench: HypervisorBench) -> None:
        """Memory and disks hold what the guest wrote."""
        departure, arrival = await bench.begin()
        await bench.push(departure, arrival)
        await bench.switch(departure, arrival)
        await departure.destroy()
        check(await bench.runs("destination"), ACTIVE, "activated, it stands still")
        wrong = await bench.rig.verdict("destination", bench.copies)
        check(not wrong, WHOLE, wrong)

    @pytest.mark.parametrize("share", [1, 2])
    async def test_pending_blocks_are_used_through_the_export(
        self, bench: HypervisorBench, share: int
    ) -> None:
        """All blocks, or each second one, are nonsense in the local copy until asked for."""
        for pending in bench.pending.values():
            for offset in range(0, pending.size, pending.block_size * share):
                pending.mark(offset, min(pending.block_size, pending.size - offset))
        shown = {name: pending.copy() for name, pending in bench.pending.items()}
        departure, arrival = await bench.begin()
        await bench.push(departure, arrival)
        check(bench.pending == shown, NOT_CHANGED, "the map was changed")
        check(bench.requests == 0, NOT_READ, f"it made {bench.requests} disk requests")
        await bench.switch(departure, arrival)
        await departure.destroy()
        for _ in range(3):
            check(await bench.runs("destination"), ACTIVE, "activated, it stands still")
        await asyncio.to_thread(bench.complete)
        wrong = await bench.rig.verdict("destination", bench.copies)
        check(not wrong, SHOWN, wrong)
        check(bench.pending == shown, NOT_CHANGED, "the map was changed")

    async def test_pivot_leaves_the_export(self, bench: HypervisorBench) -> None:
        """After the pivot the export is not used, and no write is lost."""
        if bench.rig.destination.capabilities.pivot is Grade.NONE:
            pytest.skip("it cannot pivot, and says so")
        departure, arrival = await bench.begin()
        await bench.push(departure, arrival)
        await bench.switch(departure, arrival)
        await departure.destroy()
        check(await bench.runs("destination"), ACTIVE, "activated, it stands still")
        for disk in bench.arriving:
            await arrival.pivot(disk)
        before = bench.requests
        check(await bench.runs("destination"), PIVOT, "pivoted, it stands still")
        await asyncio.sleep(0.2)
        more = bench.requests - before
        check(more == 0, PIVOT, f"{more} requests went to the export after the pivot")
        await arrival.finish()
        await arrival.finish()
        check(await bench.runs("destination"), FINISH, "finished, it stands still")
        wrong = await bench.rig.verdict("destination", bench.copies)
        check(not wrong, PIVOT, wrong)

    @pytest.mark.parametrize("state", ["departed", "transferred"])
    async def test_abort_leaves_nothing(self, bench: HypervisorBench, state: str) -> None:
        """An aborted arrival leaves the host as it was; twice is no error."""
        departure, arrival = await reach(bench, state)
        await arrival.abort()
        check(not await bench.left_over("destination"), ABORT, await bench.left_over("destination"))
        await arrival.abort()
        await departure.resume()
        check(bench.requests == 0, NOT_READ, f"it made {bench.requests} disk requests")

    async def test_taken_name_leaves_the_guest_alone(self, bench: HypervisorBench) -> None:
        """An arrival that is refused does not harm its namesake."""
        _, stream = stream_pair()
        with refuses(VmferryError, NOTHING):
            await bench.rig.source.arrive(bench.guest, bench.arriving, stream)
        check(not await bench.left_over("source"), NOTHING, await bench.left_over("source"))
        check(await bench.runs("source"), NOTHING, "the guest of that name stands still")

    async def test_cancelled_arrive_leaves_nothing(self, bench: HypervisorBench) -> None:
        """Cancelled at any moment, an arrival leaves the host as it was."""
        for delay in (0.0, 0.02, 0.1):
            _, stream = stream_pair()
            task = asyncio.ensure_future(bench.arrive(stream))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.wait([task], timeout=PATIENCE)
            if not task.cancelled():
                await task.result().abort()
            left = await bench.left_over("destination")
            check(not left, NOTHING, f"cancelled after {delay} s: {left}")


class StreamConformance:
    """A stream that fails, or lies."""

    @pytest.mark.parametrize("share", [0.0, 0.003, 0.4, 0.93, 1.0])
    async def test_broken_stream(self, bench: HypervisorBench, share: float) -> None:
        """A stream that breaks anywhere is an error at once, and the guest can be resumed."""
        await self._broken(bench, share)

    @pytest.mark.parametrize("share", [0.01, 0.6])
    async def test_broken_channels(self, bench: HypervisorBench, share: float) -> None:
        """So does one whose channels break with it."""
        self._needs_channels(bench)
        await self._broken(bench, share, channels=2)

    async def test_channels_carry_all(self, bench: HypervisorBench) -> None:
        """With channels nothing is lost, as without."""
        self._needs_channels(bench)
        departure, arrival = await bench.begin(channels=3)
        await bench.push(departure, arrival)
        await bench.switch(departure, arrival)
        await departure.destroy()
        check(await bench.runs("destination"), ACTIVE, "activated, it stands still")
        carried = all(each.written for each in bench.stream.channels)
        check(carried, CHANNELS, "its capability says so, and it does not use them")
        wrong = await bench.rig.verdict("destination", bench.copies)
        check(not wrong, WHOLE, wrong)

    @staticmethod
    def _needs_channels(bench: HypervisorBench) -> None:
        if bench.rig.source.capabilities.memory_channels is Grade.NONE:
            pytest.skip("it sends memory by one stream, and says so")

    async def _broken(self, bench: HypervisorBench, share: float, channels: int = 0) -> None:
        point = await self._point(bench, share, channels)
        departure, arrival = await bench.begin(break_after=point, channels=channels)
        failed = await self._try(bench, departure, arrival)
        broke = bench.stream.broke  # less may have been sent than on the trial run
        check(failed or not broke, ENDS, "the stream broke, and both sides say that all is well")
        await arrival.abort()
        await departure.resume()
        check(await bench.runs("source"), TIDY, "after a broken stream it stands still")
        check(not await bench.left_over("destination"), ABORT, await bench.left_over("destination"))
        wrong = await bench.rig.verdict("source", bench.rig.disks)
        check(not wrong, RESUME, wrong)

    @staticmethod
    async def _point(bench: HypervisorBench, share: float, channels: int) -> int:
        """The byte at which to break: a share of what a whole migration sends, less the last."""
        one, other = stream_pair(channels=channels)
        departure, arrival = await bench.depart(one), await bench.arrive(other)
        receiving = asyncio.ensure_future(arrival.receive())
        await departure.precopy()
        sent = one.sent
        receiving.cancel()
        await asyncio.wait([receiving])
        await arrival.abort()
        await departure.resume()
        return int(sent * share) + (share == 1.0)

    @staticmethod
    async def _try(bench: HypervisorBench, departure: Departure, arrival: Arrival) -> bool:
        try:
            async with asyncio.timeout(PATIENCE):
                await bench.push(departure, arrival)
        except ExceptionGroup as group:
            others = group.split(VmferryError)[1]
            if others:
                raise others from group
            return True
        except TimeoutError:
            pytest.fail(f"the stream broke, and after {PATIENCE} s nobody had noticed")
        return False

    async def test_garbage_is_refused(self, bench: HypervisorBench) -> None:
        """What is no memory stream is refused."""
        for garbage in (b"", b"\x00" * 4096, b"\xff" * 4096):
            one, other = stream_pair()
            arrival = await bench.arrive(other)
            await one.write(garbage)
            await one.write_eof()
            with refuses(VmferryError, ENDS):
                async with asyncio.timeout(PATIENCE):
                    await arrival.receive()
            await arrival.abort()
        check(not await bench.left_over("destination"), ABORT, await bench.left_over("destination"))
