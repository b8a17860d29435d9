"""Memory that outlives the process: files that are mapped, and told apart by the host's start.

What a process has stored in a shared mapping of a file is the kernel's and is there for the next
process (``mmap(2)``). After a crash of the host some of it may have reached the disk, so that a
file of an earlier start is begun anew. All functions block.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

__all__ = ["map_scratch", "remove_scratch"]

_HEADER = mmap.PAGESIZE
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4)


def _name(folder: Path, job: str, disk: str) -> Path:
    return folder / f"{job.replace('/', '_')}-{disk.replace('/', '_')}"


def map_scratch(folder: Path, job: str, disk: str, size: int) -> memoryview:
    """Map the scratch of a disk, as it was left since the host was started, or all zero.

    Sparse: bytes that were never written take no space.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    boot = _BOOT_ID.read_bytes().strip()
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(_name(folder, job, disk), flags, 0o600)
    try:
        if os.pread(fd, len(boot), 0) != boot or os.fstat(fd).st_size != _HEADER + size:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, _HEADER + size)
            os.pwrite(fd, boot, 0)
        return memoryview(mmap.mmap(fd, _HEADER + size))[_HEADER:]
    finally:
        os.close(fd)


def remove_scratch(folder: Path, job: str) -> None:
    """Delete a job's scratch; no error if there is none."""
    for path in folder.glob(f"{job.replace('/', '_')}-*"):
        path.unlink(missing_ok=True)
