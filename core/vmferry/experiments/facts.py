"""Facts about the machine and the programs that a run was done with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from vmferry import __version__

__all__ = ["host_facts", "versions"]

_PACKAGES = ("numpy", "blake3", "msgspec", "lz4", "zstandard", "pyzmq")


def host_facts(folder: Path) -> dict[str, Any]:
    """The machine as it is now; ``folder`` is where the disks are."""
    return {
        "machine": platform.machine(),
        "kernel": platform.release(),
        "processor": _first("/proc/cpuinfo", "model name"),
        "processors": os.cpu_count(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "filesystem": _filesystem(folder),
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Versions of vmferry, of Python, and of the packages whose speed shows."""
    found = {"vmferry": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _first(path: str, key: str) -> str:
    for line in Path(path).read_text(errors="replace").splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def _filesystem(folder: Path) -> str:
    """Type of the filesystem that ``folder`` is on, by the longest mount point above it."""
    path, best, kind = str(folder.resolve()), "", ""
    for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
        where, found = line.split()[1:3]
        below = path == where or path.startswith(where.rstrip("/") + "/")
        if below and len(where) >= len(best):
            best, kind = where, found
    return kind
