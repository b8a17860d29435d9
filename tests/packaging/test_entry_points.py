"""Every plugin that this distribution registers can be used."""

from __future__ import annotations

from importlib.metadata import distribution
from typing import Any

import pytest

from vmferry.plugins import KINDS, available, describe

OWN = [info for info in available() if info.distribution == "vmferry"]


@pytest.mark.parametrize("info", OWN, ids=lambda info: f"{info.kind}-{info.name}")
def test_it_loads(info: Any) -> None:
    assert info.error == ""
    assert info.summary


@pytest.mark.parametrize("info", OWN, ids=lambda info: f"{info.kind}-{info.name}")
def test_its_options_are_described(info: Any) -> None:
    if not info.error:
        assert all(option.description for option in describe(info.kind, info.name))


def test_what_is_installed_is_what_the_project_states(project: dict[str, Any]) -> None:
    stated = {
        (group, name, value)
        for group, points in project["project"]["entry-points"].items()
        for name, value in points.items()
    }
    groups = {*(kind.group for kind in KINDS.values()), "vmferry.hooks", "pytest11"}
    installed = {
        (point.group, point.name, point.value)
        for point in distribution("vmferry").entry_points
        if point.group in groups
    }
    assert installed == stated, "install the project again: its entry points have changed"
