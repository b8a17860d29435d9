"""``VolumeConformance``: subclass it to test a volume plugin against its contract.

Give it two fixtures, and ``read_raw`` where the disk's bytes are not simply those of a file::

    class TestFloppy(VolumeConformance):
        @pytest.fixture
        def driver(self):
            return FloppyDriver()

        @pytest.fixture
        def location(self, tmp_path):
            return str(tmp_path / "disk")

        def read_raw(self, location, offset, length):
            return subprocess.run([...], capture_output=True, check=True).stdout

``read_raw`` is the oracle: it must not use the plugin, or a fault could hide behind its own
reader. ``crash`` may be overridden where a crash can be arranged.
"""

from __future__ import annotations

import pytest

from vmferry.testing.volume_io import VolumeIO
from vmferry.testing.volume_life import VolumeLife
from vmferry.testing.volume_machine import VolumeModel

__all__ = ["VolumeConformance"]


@pytest.mark.asyncio
class VolumeConformance(VolumeLife, VolumeIO, VolumeModel):
    """The contract of ``vmferry.api.volume`` as tests; see ``VolumeKit`` for what to override."""
