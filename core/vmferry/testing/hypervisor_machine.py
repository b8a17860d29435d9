"""A hypervisor against a model: where a guest is on its way out, step by step and back."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from vmferry.api.hypervisor import Arrival, Departure
from vmferry.testing.checks import check
from vmferry.testing.hypervisor_base import ABORT, CLEAN, PATIENCE, RESUME, STOPPED, TIDY
from vmferry.testing.hypervisor_bench import HypervisorBench
from vmferry.testing.machines import Await, run_machine

__all__ = ["HypervisorModel"]


class HypervisorModel:
    """The test that hypothesis drives.

    Attributes:
        examples: sequences that are tried, all with one guest.
        steps: steps of each.
        shrink: look for the shortest sequence that fails, which may take minutes.

    """

    examples: ClassVar[int] = 2
    steps: ClassVar[int] = 8
    shrink: ClassVar[bool] = False

    async def test_any_sequence_of_steps_can_be_undone(self, bench: HypervisorBench) -> None:
        """One guest departs again and again, each time up to another step, and runs on here."""
        pytest.importorskip("hypothesis", reason="hypothesis is not installed")
        model = GuestBesideModel(bench)
        await run_machine(
            lambda run: _machine(model, run),
            examples=self.examples,
            steps=self.steps,
            shrink=self.shrink,
        )
        wrong = await bench.rig.verdict("source", bench.rig.disks)
        check(not wrong, RESUME, wrong)


class GuestBesideModel:
    """A guest, and how far its departure is: ``here``, or what was called last."""

    def __init__(self, bench: HypervisorBench) -> None:
        self._bench = bench
        self.state = "here"
        self._ends: tuple[Departure, Arrival]
        self._receiving: asyncio.Future[None]

    async def depart(self) -> None:
        """Begin, at both ends."""
        self._ends = await self._bench.begin()
        self._receiving = asyncio.ensure_future(self._ends[1].receive())
        self.state = "departed"

    async def precopy(self) -> None:
        """To its end."""
        await self._ends[0].precopy()
        self.state = "precopied"

    async def cancel_precopy(self, turns: int) -> None:
        """Somewhere on the way; all that is left is to go back."""
        sending = asyncio.ensure_future(self._ends[0].precopy())
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending], timeout=PATIENCE)
        await self.undo()

    async def suspend(self) -> None:
        """It stands still."""
        await self._ends[0].suspend()
        check(await self._bench.stands_still("source", 0.05), STOPPED, "it makes progress")
        self.state = "suspended"

    async def transfer(self) -> None:
        """It is whole at the destination, and not activated."""
        await self._ends[0].transfer()
        async with asyncio.timeout(PATIENCE):
            await self._receiving
        self.state = "transferred"

    async def undo(self) -> None:
        """It runs on here, and nothing is left of the attempt."""
        before, self.state = self.state, "here"
        departure, arrival = self._ends
        self._receiving.cancel()
        await asyncio.wait([self._receiving])
        await arrival.abort()
        await departure.resume()
        running = await self._bench.runs("source")
        check(running, TIDY, f"resumed when {before}, the guest stands still")
        for role, says in (("source", CLEAN), ("destination", ABORT)):
            left = await self._bench.left_over(role)
            check(not left, says, f"undone when {before}: {left}")


def _machine(model: GuestBesideModel, run: Await[Any]) -> type:
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

    class Machine(RuleBasedStateMachine):
        @precondition(lambda self: model.state == "here")
        @rule()
        def depart(self) -> None:
            run(model.depart())

        @precondition(lambda self: model.state == "departed")
        @rule()
        def precopy(self) -> None:
            run(model.precopy())

        @precondition(lambda self: model.state == "departed")
        @rule(turns=st.integers(0, 20))
        def cancel_precopy(self, turns: int) -> None:
            run(model.cancel_precopy(turns))

        @precondition(lambda self: model.state == "precopied")
        @rule()
        def suspend(self) -> None:
            run(model.suspend())

        @precondition(lambda self: model.state == "suspended")
        @rule()
        def transfer(self) -> None:
            run(model.transfer())

        @precondition(lambda self: model.state not in ("here",))
        @rule()
        def undo(self) -> None:
            run(model.undo())

        def teardown(self) -> None:
            if model.state != "here":
                run(model.undo())

    return Machine
