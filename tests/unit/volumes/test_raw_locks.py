"""The raw plugin and QEMU respect the locks of each other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess

import pytest

from vmferry.api.volume import Access
from vmferry.errors import VolumeBusy
from vmferry_volumes.raw import RawDriver


def qemu_lock(path: str, byte: int) -> int:
    """A descriptor with the lock that a QEMU has on this byte."""
    fd = os.open(path, os.O_RDWR)
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    return fd


@pytest.mark.parametrize(
    ("byte", "refused"), [(101, True), (201, True), (103, True), (100, False), (203, False)]
)
async def test_qemu_locks_are_respected(disk: str, byte: int, refused: bool) -> None:
    held = qemu_lock(disk, byte)
    try:
        await (await RawDriver().open(disk, Access.READ)).close()
        with pytest.raises(VolumeBusy, match=disk) if refused else contextlib.nullcontext():
            await (await RawDriver().open(disk, Access.WRITE)).close()
    finally:
        os.close(held)


async def test_qemu_respects_the_claim(disk: str) -> None:
    async with await RawDriver().open(disk, Access.WRITE) as volume:
        assert "lock" in await qemu_io(disk)
        await volume.unlock()
        assert "lock" not in await qemu_io(disk)


async def qemu_io(disk: str) -> str:
    try:
        ran = await asyncio.to_thread(
            subprocess.run,
            ["qemu-io", "-f", "raw", "-c", "write 0 512", disk],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("qemu-io is not installed")
    return ran.stderr
