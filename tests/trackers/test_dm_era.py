"""The ``dm-era`` tracker on real device-mapper devices, against its contract."""

from __future__ import annotations

import asyncio

import pytest
from blockdevices import run
from rigs import AlignedRig, DeviceRig, LinearRig, SlowRig

from vmferry.api.findings import Severity
from vmferry.testing.tracker import TrackerConformance
from vmferry_trackers.dm_era.needs import needs
from vmferry_trackers.dm_era.tracker import DmEraOptions, DmEraTracker

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


class DmEra(DeviceRig):
    def make_tracker(self):
        return DmEraTracker(DmEraOptions(state_dir=str(self.folder / "state")))

    async def need(self):
        for finding in await needs(self.disk, self.folder, 0):
            if finding.severity is Severity.ERROR:
                pytest.skip(finding.text)


class OnAligned(DmEra, AlignedRig):
    pass


class OnMisaligned(DmEra, LinearRig):
    pass


class OnSlow(DmEra, SlowRig):
    pass


class TestOnDeviceMapper(TrackerConformance):
    rounds = 4

    @pytest.fixture
    def rig(self, tmp_path):
        return OnAligned(tmp_path)


async def test_discards_are_refused_where_they_could_not_be_marked(tmp_path):
    async with OnMisaligned(tmp_path) as rig:
        before = await asyncio.to_thread(run, "dmsetup", "table", rig.device)
        await rig.guest_discard(4096, 8192)
        await rig.tracker.start(rig.disk, 4096)
        with pytest.raises(OSError, match="not supported"):
            await rig.guest_discard(4096, 8192)
        await rig.tracker.stop()
        await rig.guest_discard(4096, 8192)
        assert await asyncio.to_thread(run, "dmsetup", "table", rig.device) == before


async def test_what_a_killed_process_left_is_taken_out(tmp_path):
    async with OnAligned(tmp_path) as rig:
        before = await asyncio.to_thread(run, "dmsetup", "table", rig.device)
        dead = rig.make_tracker()
        await dead.start(rig.disk, 4096)
        await dead._stack.device.message("take_metadata_snap")
        findings = await rig.tracker.check(rig.disk, 4096)
        assert [finding.code for finding in findings] == ["dm-era-left-over"]
        await rig.tracker.start(rig.disk, 8192)
        await rig.guest_write(8192, bytes(512))
        assert list((await rig.tracker.harvest()).runs()) == [(8192, 8192)]
        await rig.tracker.stop()
        assert await asyncio.to_thread(run, "dmsetup", "table", rig.device) == before
        assert not list((tmp_path / "state").iterdir())


async def test_snapshot_of_a_harvest_cut_short_is_released(tmp_path):
    async with OnAligned(tmp_path) as rig:
        await rig.tracker.start(rig.disk, 4096)
        await rig.guest_write(8192, bytes(512))
        await rig.tracker._stack.device.message("take_metadata_snap")
        assert (await rig.tracker.harvest()).any(8192, 1)
        assert not (await rig.tracker._stack.status()).held
