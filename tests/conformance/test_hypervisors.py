"""The hypervisors in tree keep the contract."""

import pytest

from vmferry.testing.hypervisor import HypervisorConformance

pytestmark = pytest.mark.real


class TestProcess(HypervisorConformance):
    @pytest.fixture
    def rig(self, process_rig, tmp_path):
        return process_rig(tmp_path)
