"""Loop devices and what a guest does to a block device, for the tests of trackers."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import stat
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from aio import AsyncWrites
from aligned import Aligned

BLKZEROOUT, BLKDISCARD = 0x127F, 0x1277
BLKPG, BLKPG_ADD, BLKPG_DELETE = 0x1269, 1, 2


def needs_root() -> None:
    if os.geteuid():
        pytest.skip("needs root: loop devices, eBPF")


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


class DirectGuest:
    """A guest that has a block device: writes past the page cache, several requests at once."""

    def __init__(self, device: str) -> None:
        self.fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        self._pool = ThreadPoolExecutor(4, "guest")
        self._writes = AsyncWrites(self.fd)

    async def write(self, offset: int, data: bytes) -> None:
        await self._writes.write(offset, data)

    def in_flight(self) -> list[tuple[int, int]]:
        """What the block layer was given and has not said to be done."""
        return self._writes.in_flight()

    async def zero(self, offset: int, length: int) -> None:
        await self._request(BLKZEROOUT, offset, length)

    async def discard(self, offset: int, length: int) -> None:
        await self._request(BLKDISCARD, offset, length)

    async def _request(self, number: int, offset: int, length: int) -> None:
        loop, range_ = asyncio.get_running_loop(), struct.pack("QQ", offset, length)
        await loop.run_in_executor(self._pool, fcntl.ioctl, self.fd, number, range_)

    def read(self, offset: int, length: int) -> bytes:
        buffer = Aligned(bytes(length))
        try:
            done = 0
            while done < length:
                done += os.preadv(self.fd, [buffer.view[done:]], offset + done)
            return bytes(buffer.view)
        finally:
            buffer.close()

    def close(self) -> None:
        self._writes.close()
        self._pool.shutdown()
        os.close(self.fd)


def map_device(undo: ExitStack, name: str, table: str) -> str:
    """A device-mapper device; skips where there is no device-mapper."""
    name = f"vmferry-test-{os.getpid()}-{name}"
    try:
        run("dmsetup", "create", name, "--table", table)
    except FileNotFoundError:
        pytest.skip("dmsetup is not installed")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no device-mapper device is to be had: {error.stderr.strip()}")
    undo.callback(run, "dmsetup", "remove", "--retry", name)
    return f"/dev/mapper/{name}"


def make_loop(undo: ExitStack, path: Path, size: int, *options: str) -> str:
    """A loop device over a new file without content, or over a device."""
    if not path.exists():
        path.touch()
        os.truncate(path, size)
    try:
        device = run("losetup", "--find", "--show", *options, str(path))
    except FileNotFoundError:
        pytest.skip("losetup is not installed")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device is to be had: {error.stderr.strip()}")
    undo.callback(run, "losetup", "--detach", device)
    return device


def make_partition(undo: ExitStack, whole: str, node: Path, start: int, length: int) -> str:
    """A partition in the kernel's mind only, in bytes, and a node for it."""
    with open(whole, "rb") as file:
        _partition(file.fileno(), BLKPG_ADD, start, length)
        undo.callback(_remove_partition, whole)
        name = Path(whole).name
        number = Path(f"/sys/block/{name}/{name}p1/dev").read_text().strip().split(":")
    os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(*map(int, number)))
    return str(node)


def _remove_partition(whole: str) -> None:
    with open(whole, "rb") as file:
        _partition(file.fileno(), BLKPG_DELETE, 0, 0)


def _partition(fd: int, operation: int, start: int, length: int) -> None:
    data = ctypes.create_string_buffer(struct.pack("qqi64s64s4x", start, length, 1, b"", b""))
    fcntl.ioctl(fd, BLKPG, struct.pack("iiiiQ", operation, 0, len(data), 0, ctypes.addressof(data)))


def device_number(device: str) -> str:
    number = os.stat(device).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"
