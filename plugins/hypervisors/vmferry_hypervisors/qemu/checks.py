"""Reasons why a QEMU guest cannot leave, found before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vmferry.api.findings import Finding
from vmferry_hypervisors.qemu.describe import list_drives
from vmferry_hypervisors.qemu.migration import UNCARRIED
from vmferry_support.qmp import Qmp

__all__ = ["check_source"]

_LEAST = (5, 2, 0)
"""The first QEMU with ``block-export-add`` and its bitmaps."""
_SOUND = (9, 0, 0)
"""The first QEMU that keeps a whole record of what it emulates; see docs/qemu.md."""
_NEEDED = ("events", "pause-before-switchover", "return-path")
_AT_WORK = ("setup", "active", "postcopy-active", "pre-switchover", "device", "wait-unplug")


async def check_source(qmp: Qmp, name: str) -> list[Finding]:
    """All that speaks against sending the guest at this monitor."""
    if qmp.version < _LEAST:
        text = f"guest {name} runs in QEMU {_dotted(qmp.version)}; {_dotted(_LEAST)} is needed"
        return [Finding.error("qemu-old", text, "restart it in a newer QEMU")]
    return [
        *_status(name, await qmp.execute("query-status")),
        *_emulation(name, qmp.version, await qmp.execute("query-kvm")),
        *_migration(name, await qmp.execute("query-migrate")),
        *_capabilities(name, await qmp.execute("query-migrate-capabilities")),
        *_jobs(name, await qmp.execute("query-jobs")),
        *[finding for drive in await list_drives(qmp) for finding in _drive(name, drive)],
    ]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _status(name: str, said: Any) -> Iterator[Finding]:
    if not said["running"]:
        text = f"guest {name} does not run: {said['status']}"
        yield Finding.error(
            "guest-stopped", text, "let it run (cont) or start it at the other host"
        )


def _emulation(name: str, version: tuple[int, ...], said: Any) -> Iterator[Finding]:
    if version < _SOUND and not said["enabled"]:
        text = (
            f"guest {name} runs without KVM in QEMU {_dotted(version)}, which may lose what it "
            f"writes to its memory while that is sent"
        )
        remedy = f"restart it in QEMU {_dotted(_SOUND[:2])} or later; see docs/qemu.md"
        yield Finding.warning("qemu-loses-memory", text, remedy)


def _migration(name: str, said: Any) -> Iterator[Finding]:
    if said.get("status") in _AT_WORK:
        yield Finding.error("guest-migrates", f"guest {name} is being migrated already")
    for reason in said.get("blocked-reasons", ()):
        yield Finding.error("guest-blocked", f"guest {name} cannot be migrated by QEMU: {reason}")


def _capabilities(name: str, said: Any) -> Iterator[Finding]:
    known = {each["capability"]: each["state"] for each in said}
    for needed in _NEEDED:
        if needed not in known:
            yield Finding.error("qemu-lacks", f"guest {name}: its QEMU cannot do {needed}")
    for other in UNCARRIED:
        if known.get(other):
            text = f"guest {name}: its QEMU is set to {other}, which cannot be carried"
            yield Finding.error("qemu-setting", text, f"turn the capability {other} off")


def _jobs(name: str, said: Any) -> Iterator[Finding]:
    for job in said:
        if job["status"] not in ("concluded", "null"):
            text = f"guest {name}: job {job['id']} ({job['type']}) works on its disks"
            yield Finding.error("guest-job", text, "wait for it or cancel it")


def _drive(name: str, drive: Any) -> Iterator[Finding]:
    if drive.flash:
        if not drive.read_only:
            text = f"guest {name}: the firmware's variables in {drive.file} travel with its memory"
            yield Finding.warning("firmware", text, "give the destination a file of that size")
    elif drive.removable:
        text = f"guest {name}: there is a medium in {drive.name}: {drive.file}"
        yield Finding.error("medium", text, f"take it out (eject {drive.name})")
