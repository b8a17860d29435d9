"""Kernel modules that the disks of an arriving guest need.

The module ``nbd`` is needed without its search for partitions, which reads a device when it is
opened, and so would wait for the source. Debian's package nbd-client sets it to search: a module
that nobody uses is loaded anew.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from vmferry.api.findings import Finding
from vmferry.errors import VmferryError
from vmferry_support.commands import run

__all__ = ["SYSFS", "load_modules", "module_findings"]

SYSFS = Path("/sys/module")


def _present(module: str, sysfs: Path) -> bool:
    return (sysfs / module).exists()


def _searches(sysfs: Path) -> bool:
    """Whether ``nbd`` is loaded and looks for partitions."""
    setting = sysfs / "nbd/parameters/max_part"
    return setting.exists() and setting.read_text().strip() != "0"


def _replaceable(sysfs: Path) -> bool:
    """Whether ``nbd`` is a module, not part of the kernel, that nobody uses."""
    users = sysfs / "nbd/refcnt"
    return users.exists() and users.read_text().strip() == "0"


async def load_modules(sysfs: Path = SYSFS) -> None:
    """Load what is missing; of ``nbd`` that searches for partitions, make one that does not.

    Raises:
        VmferryError: a module cannot be loaded, or ``nbd`` is in use.

    """
    if await asyncio.to_thread(_searches, sysfs):
        await run("modprobe", "-r", "nbd")
        await run("modprobe", "nbd", "max_part=0")
    elif not await asyncio.to_thread(_present, "nbd", sysfs):
        await run("modprobe", "nbd", "max_part=0")
    for module in ("loop", "dm_mod"):
        if not await asyncio.to_thread(_present, module, sysfs):
            await run("modprobe", module)


async def module_findings(sysfs: Path = SYSFS) -> list[Finding]:
    """What stands in the way of :func:`load_modules`."""
    found = []
    for module in ("nbd", "dm_mod", "loop"):
        if not _present(module, sysfs):
            try:
                await run("modprobe", "--dry-run", module)
            except VmferryError:
                text = f"the kernel has no module {module}"
                remedy = "use a kernel that has it; see docs/xen.md"
                found.append(Finding.error("module-missing", text, remedy))
    if _searches(sysfs) and not _replaceable(sysfs):
        text = (
            "the kernel's nbd is in use and looks for partitions, which would wait for the source"
        )
        remedy = (
            "end what uses it, then modprobe -r nbd && modprobe nbd max_part=0; boot with "
            "nbd.max_part=0 if it is part of the kernel"
        )
        found.append(Finding.error("module-options", text, remedy))
    return found
