"""The whole test file of a volume plugin."""

from pathlib import Path

import pytest

from vmferry.cli.scaffold.samples.volume import PlainDriver
from vmferry.testing.volume import VolumeConformance


class TestPlainFile(VolumeConformance):
    """The contract, on plain files."""

    @pytest.fixture
    def driver(self) -> PlainDriver:
        """The plugin, with its defaults."""
        return PlainDriver()

    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        """Where there is no disk yet."""
        return str(tmp_path / "disk")
