"""Faults put into a copy of the code: the demo must report the loss and say so by its exit code.

A check that cannot fail proves nothing. Each fault is one that dirty tracking is known to suffer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Demo = Callable[..., Any]
TRIES = 5
"""A fault needs something to be under way at the right moment."""
COMMON = (
    *("--block-size", "4KiB", "--compression", "none", "--after", "0"),
    *("--trial-opt", "write_rate=0", "--trial-opt", "memory=16MiB"),
)
IN_A_ROW = (
    *COMMON,
    *("--disk-size", "256MiB", "--bandwidth", "32MiB/s", "--threshold", "1MiB"),
    *("--trial-opt", "pattern=sequential", "--trial-opt", "prefill=0.1"),
)
"""One block after the other, so that a lost write is not made good by the guest's next one."""
MUCH_TO_PULL = (
    *COMMON,
    *("--disk-size", "64MiB", "--bandwidth", "16MiB/s", "--threshold", "1GiB"),
    *("--trial-opt", "read_ratio=0.5"),
)
"""The switch comes after one round, and the guest uses what has not come yet."""

pytestmark = [pytest.mark.real, pytest.mark.mutant, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
ROOTS = [
    "core",
    *(
        f"plugins/{kind}"
        for kind in ("volumes", "trackers", "transports", "hypervisors", "support")
    ),
]
CLEAR_AFTER_READ = (
    "        await self.sender.barrier()\n        self._ledger.settle()\n        seconds = ",
    "        await harvest_all(self._disks)\n"
    "        for disk in self._disks:\n"
    "            disk.todo.clear_all()\n"
    "        await self.sender.barrier()\n        self._ledger.settle()\n        seconds = ",
)
MUTANTS = {
    "bits cleared after the blocks were read": ("core/vmferry/engine/push.py", *CLEAR_AFTER_READ),
    "no harvest after the guest was suspended": (
        "core/vmferry/engine/disks.py",
        "            await self.tracker.drain()\n        await self.harvest()\n",
        "            await self.tracker.drain()\n",
    ),
    "blocks harvested but not sent are forgotten at the switch": (
        "core/vmferry/engine/disks.py",
        "            return self.todo.refine(self.offered)\n"
        "        return self.todo.coarsen(self.offered)\n",
        "            return self.todo.refine(self.offered)\n"
        "        return DirtyMap(self.disk.size, self.offered)\n",
    ),
    "the tracker marks no writes": (
        "core/vmferry/export/tracked.py",
        "            self._map.mark(change.offset, change.length)\n",
        "            pass\n",
        "            self._map.mark(offset, length)\n",
        "            pass\n",
    ),
    "pulled data overwrites what the guest has written since": (
        "core/vmferry/engine/pullcopy.py",
        "        runs = list(dirty_runs(self._pending, offset, offset + length))\n"
        "        self._stats.late",
        "        runs = [(offset, length)]\n        self._stats.late",
        "        if self._pending.any(offset, length):\n            if data is not None and",
        "        if True:\n            if data is not None and",
    ),
    "reads of pending blocks are not fetched": (
        "core/vmferry/engine/pulldisk.py",
        "            if copy.touches_pending(offset, buffer.nbytes):  # noqa",
        "            if False:  # noqa",
    ),
}


def mutated(folder: Path, file: str, *changes: str) -> dict[str, str]:
    """An environment whose vmferry is a copy with the changes made."""
    for root in ROOTS:
        shutil.copytree(ROOT / root, folder / root, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / file).read_text()
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text, f"{file} no longer has the place for this fault"
        text = text.replace(old, new)
    (folder / file).write_text(text)
    return os.environ | {"PYTHONPATH": ":".join(str(folder / root) for root in ROOTS)}


def options_for(name: str) -> tuple[str, ...]:
    return MUCH_TO_PULL if MUTANTS[name][0].startswith("core/vmferry/engine/pull") else IN_A_ROW


@pytest.mark.parametrize("name", MUTANTS)
def test_the_fault_is_reported(name: str, tmp_path: Path, demo: Demo) -> None:
    env = mutated(tmp_path, *MUTANTS[name])
    for _ in range(TRIES):
        result = demo(*options_for(name), env=env)
        assert result.code in (0, 6), result.errors
        if result.code == 6:
            break
    facts = result.verdict
    assert facts["lost"] + facts["wrong"] + facts["bad_reads"] > 0


@pytest.mark.parametrize("options", [IN_A_ROW, MUCH_TO_PULL], ids=["rounds", "pull"])
def test_without_a_fault_the_same_demo_is_good(
    options: tuple[str, ...], tmp_path: Path, demo: Demo
) -> None:
    result = demo(*options, env=mutated(tmp_path, "core/vmferry/engine/push.py"))
    assert result.code == 0, result.errors
    assert result.verdict["lost"] == 0
