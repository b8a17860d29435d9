"""The module nbd, which Debian's package nbd-client sets to look for partitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry_hypervisors.xen import modules
from vmferry_hypervisors.xen.modules import load_modules, module_findings


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    async def run(*argv: str) -> str:
        calls.append(" ".join(argv))
        return ""

    monkeypatch.setattr(modules, "run", run)
    return calls


def _nbd(sysfs: Path, max_part: int, users: int | None = 0) -> Path:
    for module in ("loop", "dm_mod", "nbd/parameters"):
        (sysfs / module).mkdir(parents=True)
    (sysfs / "nbd/parameters/max_part").write_text(f"{max_part}\n")
    if users is not None:
        (sysfs / "nbd/refcnt").write_text(f"{users}\n")
    return sysfs


async def test_what_nobody_uses_is_loaded_anew(tmp_path: Path, ran: list[str]) -> None:
    sysfs = _nbd(tmp_path, 15)
    assert await module_findings(sysfs) == []
    await load_modules(sysfs)
    assert ran == ["modprobe -r nbd", "modprobe nbd max_part=0"]


@pytest.mark.parametrize("users", [1, None])
async def test_what_is_in_use_or_built_in_is_a_finding(
    tmp_path: Path, ran: list[str], users: int | None
) -> None:
    (finding,) = await module_findings(_nbd(tmp_path, 15, users))
    assert finding.code == "module-options"
    assert ran == []


async def test_what_does_not_search_is_left_alone(tmp_path: Path, ran: list[str]) -> None:
    sysfs = _nbd(tmp_path, 0, users=3)
    assert await module_findings(sysfs) == []
    await load_modules(sysfs)
    assert ran == []


async def test_what_is_missing_is_loaded(tmp_path: Path, ran: list[str]) -> None:
    await load_modules(tmp_path)
    assert ran == ["modprobe nbd max_part=0", "modprobe loop", "modprobe dm_mod"]
