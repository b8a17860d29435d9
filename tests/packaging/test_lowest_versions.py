from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

lowest = runpy.run_path(str(Path(__file__).with_name("lowest_versions.py")))["lowest"]


def test_each_dependency_has_one_pin(project: dict[str, Any]) -> None:
    pins = list(lowest(project["project"]["dependencies"]))
    names = [pin.partition("==")[0] for pin in pins]
    assert len(names) == len(set(names))
    assert {"click", "numpy", "stevedore", "pluggy"} <= set(names)


def test_markers_hold_and_a_missing_bound_is_an_error() -> None:
    lines = ["a>=1.2", "b>=3; python_version < '3'", "c>=2,<9; python_version > '3'"]
    assert list(lowest(lines)) == ["a==1.2", "c==2"]
    with pytest.raises(ValueError, match="'d' has no lower bound"):
        list(lowest(["d"]))
