"""Conformance of a hypervisor plugin: the contract's sentences, tried on a running guest.

Subclass it and say how a guest is started and watched::

    class TestToaster(HypervisorConformance):
        @pytest.fixture
        def rig(self, tmp_path):
            return ToasterRig(tmp_path)

Each test is given one guest that runs at the source; the kit moves its disks itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from vmferry.testing.hypervisor_bench import HypervisorBench, HypervisorRig
from vmferry.testing.hypervisor_machine import HypervisorModel
from vmferry.testing.hypervisor_source import DepartureConformance, DescribeConformance
from vmferry.testing.hypervisor_target import ArrivalConformance, StreamConformance

__all__ = ["HypervisorBench", "HypervisorConformance", "HypervisorRig"]


@pytest.mark.asyncio
class HypervisorConformance(
    DescribeConformance,
    DepartureConformance,
    ArrivalConformance,
    StreamConformance,
    HypervisorModel,
):
    """All of the contract. Override the fixture ``rig``."""

    @pytest.fixture
    def rig(self) -> HypervisorRig:
        """How to start a guest of the plugin under test, and to watch it."""
        raise NotImplementedError("override the fixture 'rig'")

    @pytest_asyncio.fixture
    async def bench(self, rig: HypervisorRig, tmp_path: Path) -> AsyncIterator[HypervisorBench]:
        """A guest that runs at the source."""
        bench = HypervisorBench(rig, tmp_path)
        try:
            await bench.start()
            yield bench
        finally:
            await bench.close()
