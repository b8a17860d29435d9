"""Places for disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.units import MIB


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "disk")


@pytest.fixture
def disk(path: str) -> str:
    Path(path).write_bytes(bytes(MIB))
    return path
