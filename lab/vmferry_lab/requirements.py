"""What this machine must have, with the Debian package each thing comes from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from vmferry.units import GIB, format_size
from vmferry_lab.errors import Missing

__all__ = ["BUILDERS", "MEMORY", "PROGRAMS", "check"]

PROGRAMS = {
    "gcc": "gcc libc6-dev",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "setsid": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tar": "tar",
}
"""Programs, and the packages they are in."""

BUILDERS = ("gcc", "mke2fs", "mmdebstrap", "tar")
"""Those that are needed to build an image and guests, and boot no host."""

MEMORY = 6 * GIB + GIB // 2
"""Bytes that must be free: two hosts, and QEMU's own need."""


def check(meminfo: Path = Path("/proc/meminfo"), *, hosts: bool = True) -> None:
    """See that every program is there, and what else a laboratory cannot do without.

    Args:
        meminfo: says how much memory is free.
        hosts: whether hosts are to be booted; else something is built only.

    Raises:
        Missing: something is not; says what, and for programs the command that installs them.

    """
    as_root = os.geteuid() == 0
    wanted = PROGRAMS if hosts else {name: PROGRAMS[name] for name in BUILDERS}
    if not as_root:
        wanted = {**wanted, "fakeroot": "fakeroot"}
    absent = [program for program in wanted if shutil.which(program) is None]
    if absent:
        packages = " ".join(sorted({wanted[program] for program in absent}))
        raise Missing(f"not installed: {', '.join(absent)}; try: apt install {packages}")
    if not as_root and not _namespaces():
        raise Missing("mmdebstrap needs root or user namespaces, which are switched off here")
    if hosts and (free := _available(meminfo)) < MEMORY:
        raise Missing(f"{format_size(MEMORY)} of memory are needed, {format_size(free)} are free")


def _namespaces() -> bool:
    """Whether a user may have namespaces, and be root in them."""
    argv = ["unshare", "--user", "--map-root-user", "true"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _available(meminfo: Path) -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else MEMORY
