"""The ``blkback`` tracker on real block devices, against its contract."""

from __future__ import annotations

import pytest
from rigs import DeviceRig, LinearRig, PartitionRig, SlowLoopRig, SlowRig

from vmferry.api.findings import Severity
from vmferry.testing.tracker import TrackerConformance
from vmferry_trackers.blkback.device import find_device
from vmferry_trackers.blkback.needs import kernel_findings
from vmferry_trackers.blkback.tracker import BlkbackOptions, BlkbackTracker

pytestmark = pytest.mark.real


class Blkback(DeviceRig):
    """A file over a loop device, unless mixed with another rig."""

    def make_tracker(self):
        return BlkbackTracker(BlkbackOptions(settle=0))

    async def need(self):
        for finding in kernel_findings(find_device(self.disk)):
            if finding.severity is Severity.ERROR:
                pytest.skip(finding.text)


class OnPartition(Blkback, PartitionRig):
    pass


class OnLinear(Blkback, LinearRig):
    pass


class OnSlow(Blkback, SlowRig):
    pass


class OnSlowLoop(Blkback, SlowLoopRig):
    pass


class TestOnLoop(TrackerConformance):
    @pytest.fixture
    def rig(self, tmp_path):
        return Blkback(tmp_path)


class TestOnPartition(TrackerConformance):
    @pytest.fixture
    def rig(self, tmp_path):
        return OnPartition(tmp_path)


class TestOnDeviceMapper(TrackerConformance):
    @pytest.fixture
    def rig(self, tmp_path):
        return OnLinear(tmp_path)


class TestOnSlowDeviceMapper(TrackerConformance):
    rounds = 5

    @pytest.fixture
    def rig(self, tmp_path):
        return OnSlow(tmp_path)


class TestOnSlowLoop(TrackerConformance):
    rounds = 5

    @pytest.fixture
    def rig(self, tmp_path):
        return OnSlowLoop(tmp_path)
