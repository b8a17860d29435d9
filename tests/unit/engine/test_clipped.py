from __future__ import annotations

import pytest

from vmferry.api import Geometry
from vmferry.engine.clipped import clipped
from vmferry.testing.memory import MemoryDriver


async def test_only_the_disks_own_bytes_can_be_reached() -> None:
    device = await MemoryDriver().create("device", Geometry(8192, 512))
    disk = clipped(device, 4096)
    assert disk.geometry == Geometry(4096, 512)
    await disk.write(3584, memoryview(b"x" * 512))
    for request in (
        disk.write(3584, memoryview(bytes(1024))),
        disk.write_zeroes(4096, 512),
        disk.discard(0, 8192),
        disk.read_into(4096, memoryview(bytearray(512))),
    ):
        with pytest.raises(ValueError, match="disk of 4096"):
            await request
    tail = memoryview(bytearray(512))
    await device.read_into(3584, tail)
    assert tail == b"x" * 512
    assert sum([e.length async for e in disk.extents(0, 4096)]) == 4096
    await disk.flush()
    await disk.unlock()
    await disk.close()


async def test_a_volume_of_the_right_size_is_left_alone() -> None:
    volume = await MemoryDriver().create("device", Geometry(4096, 512))
    assert clipped(volume, 4096) is volume
    await volume.close()
