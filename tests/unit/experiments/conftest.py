"""Experiments share files that describe them, and ``pretending``, runs that nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vmferry.experiments.definition import Definition, read_definition

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def describe(tmp_path: Path) -> Callable[[str], Definition]:
    """Reads a definition from text."""

    def read(text: str) -> Definition:
        path = tmp_path / "trial.toml"
        path.write_text(text)
        return read_definition(path)

    return read
