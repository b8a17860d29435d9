"""A volume against a model: random requests, compared with a ``bytearray`` after each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from vmferry.api.volume import Access, Geometry, Volume
from vmferry.testing.checks import check_same, pattern
from vmferry.testing.volume_base import Driver, VolumeKit, read

__all__ = ["VolumeModel"]

_SEES = "on return every later read sees it"


class VolumeModel(VolumeKit):
    """The one test that hypothesis drives.

    Attributes:
        examples: sequences that are tried.
        steps: requests of each.
        shrink: look for the shortest sequence that fails, which may take minutes.

    """

    examples: ClassVar[int] = 10
    steps: ClassVar[int] = 25
    shrink: ClassVar[bool] = False

    async def test_behaves_like_a_bytearray(self, driver: Driver, location: str) -> None:
        """Writes, zeroes, discards, flushes and reopenings, in any order, at any place."""
        hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
        stateful = pytest.importorskip("hypothesis.stateful")
        settings = hypothesis.settings(
            max_examples=self.examples,
            stateful_step_count=self.steps,
            deadline=None,
            database=None,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink)[: 1 + self.shrink],
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        machine = _machine(lambda: VolumeBesideModel(self, driver, location), self.geometry)
        await asyncio.to_thread(stateful.run_state_machine_as_test, machine, settings=settings)


class VolumeBesideModel:
    """A volume and what it should hold, on an event loop of its own."""

    def __init__(self, kit: VolumeKit, driver: Driver, location: str) -> None:
        self._kit, self._driver, self._location = kit, driver, location
        self._runner = asyncio.Runner()
        self.model = bytearray(kit.geometry.size)
        self._volume: Volume = self._run(self._open())

    def _run(self, request: Any) -> Any:
        return self._runner.run(request)

    async def _open(self) -> Volume:
        await self._driver.remove(self._location)
        volume = await self._driver.create(self._location, self._kit.geometry)
        if not self._kit.creatable:
            await volume.write_zeroes(0, self._kit.geometry.size)
        return volume

    def write(self, offset: int, length: int, seed: int) -> None:
        """Write a pattern on both, and use the buffer for something else."""
        buffer = bytearray(pattern(length, seed))
        self.model[offset : offset + length] = buffer
        self._run(self._volume.write(offset, memoryview(buffer)))
        buffer[:] = b"\xee" * length

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Zero a range on both."""
        self.model[offset : offset + length] = bytes(length)
        self._run(self._volume.write_zeroes(offset, length, unmap=unmap))

    def discard(self, offset: int, length: int) -> None:
        """Discard a range, and let the model have what is there now."""
        self._run(self._volume.discard(offset, length))
        self.model[offset : offset + length] = self._run(read(self._volume, offset, length))

    def compare(self, offset: int, length: int) -> None:
        """Fail unless the range is the same on both."""
        found = self._run(read(self._volume, offset, length))
        check_same(found, self.model[offset : offset + length], _SEES, offset)

    def reopen(self) -> None:
        """Close the volume and open it again."""
        self._run(self._volume.close())
        self._volume = self._run(self._driver.open(self._location, Access.WRITE))

    def finish(self) -> None:
        """Compare the whole disk out of band, and close."""
        try:
            self._run(self._kit.agree(self._volume, self._location, self.model))
        finally:
            self._run(self._volume.close())
            self._runner.close()


def _machine(begin: Callable[[], VolumeBesideModel], geometry: Geometry) -> Any:
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, rule

    sectors = geometry.size // geometry.sector_size
    near = st.sampled_from([0, 1, 7, 8, 127, 128, sectors // 2, sectors - 9, sectors - 1])
    firsts = near | st.integers(0, sectors - 1)
    counts = st.sampled_from([1, 2, 8, 9, 128, 300, sectors]) | st.integers(1, sectors)

    def spot(first: int, count: int) -> tuple[int, int]:
        count = min(count, sectors - first)
        return first * geometry.sector_size, count * geometry.sector_size

    spots = st.builds(spot, firsts, counts)

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.both = begin()

        @rule(spot=spots, seed=st.integers(2, 9))
        def write(self, spot: tuple[int, int], seed: int) -> None:
            self.both.write(*spot, seed)

        @rule(spot=spots, unmap=st.booleans())
        def zero(self, spot: tuple[int, int], unmap: bool) -> None:
            self.both.zero(*spot, unmap)

        @rule(spot=spots)
        def discard(self, spot: tuple[int, int]) -> None:
            self.both.discard(*spot)

        @rule(spot=spots)
        def compare(self, spot: tuple[int, int]) -> None:
            self.both.compare(*spot)

        @rule()
        def reopen(self) -> None:
            self.both.reopen()

        def teardown(self) -> None:
            self.both.finish()

    return Machine
