"""The volume plugins that need QEMU, against their contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.api.volume import Geometry
from vmferry.testing.volume import VolumeConformance
from vmferry.testing.volume_base import VolumeKit
from vmferry.testing.volume_machine import VolumeModel
from vmferry.units import KIB
from vmferry_volumes.qcow2.driver import Qcow2Driver, Qcow2Options

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("qemu-storage-daemon") is None, reason="qemu-storage-daemon is not installed"
    ),
]


class Qcow2Kit(VolumeKit):
    @pytest.fixture
    def driver(self) -> Qcow2Driver:
        return Qcow2Driver()

    @pytest.fixture
    def location(self, tmp_path: Path) -> Iterator[str]:
        """A place for an image, which is sound afterwards if one was made."""
        path = tmp_path / "disk.qcow2"
        yield str(path)
        if path.exists():
            subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=True)

    def read_raw(self, location: str, offset: int, length: int) -> bytes:
        """By another program of QEMU's, which does not share what our daemon has cached."""
        with tempfile.NamedTemporaryFile() as flat:
            subprocess.run(
                ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", location, flat.name],
                check=True,
            )
            return os.pread(flat.fileno(), length, offset)


class TestQcow2(Qcow2Kit, VolumeConformance):
    examples = 4  # each reopening is a daemon's end and another's start


@pytest.mark.asyncio
class TestQcow2SmallClusters(Qcow2Kit, VolumeModel):
    geometry = Geometry(1024 * KIB + 4096, 4096)
    examples = 4

    @pytest.fixture
    def driver(self) -> Qcow2Driver:
        return Qcow2Driver(Qcow2Options(cluster_size=4096, sector_size=4096))
