"""What all tests share: how long a property test may take, and which tests need a newer QEMU."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "anywhere", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("anywhere")

_PROGRAMS = ("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon")
_SOUND = 9
"""The first QEMU that moves a guest without KVM whole; see docs/qemu.md."""

if _folder := os.environ.get("VMFERRY_QEMU"):
    os.environ["PATH"] = f"{_folder}:{os.environ['PATH']}"


@functools.cache
def _amiss() -> str:
    """Why whole QEMU guests cannot be moved here; empty if they can."""
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is not installed"
    said = subprocess.run([_PROGRAMS[0], "--version"], capture_output=True, text=True).stdout
    found = re.search(r"version (\d+)", said)
    if os.environ.get("VMFERRY_OLD_QEMU") or (found and int(found[1]) >= _SOUND):
        return ""
    return (
        f"QEMU {_SOUND} or later is needed, since an older one may lose what a guest without KVM "
        f"writes to its memory (docs/qemu.md); with VMFERRY_OLD_QEMU=1 it is tried all the same"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests of a long suite that are not among those it names as essential."""
    essential = getattr(getattr(item, "cls", None), "essential", None)
    if essential is not None and item.name not in essential:
        item.add_marker(pytest.mark.qemu)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that move whole QEMU guests where no QEMU is fit for it."""
    if item.get_closest_marker("guest") and (why := _amiss()):
        pytest.skip(why)
