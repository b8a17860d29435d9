"""The volume ``qemu``: what a running QEMU's disk holds, and what is left there afterwards."""

from __future__ import annotations

import asyncio
import os

import pytest

from vmferry.api.volume import Access, ExtentKind, Geometry
from vmferry.errors import VolumeError, VolumeMissing
from vmferry_support.nbd import NbdClient
from vmferry_support.qemu_exports import _place
from vmferry_volumes.qemu.driver import QemuDriver, QemuOptions
from vmferry_volumes.qemu.location import NodeLocation

pytestmark = pytest.mark.real
SIZE = 4 << 20
DEAD = (1 << 22) + 1  # no process has such a number


@pytest.fixture
def by_nbd():
    return QemuDriver(QemuOptions(read="nbd"))


@pytest.fixture(params=["auto", "nbd"])
def driver(request):
    return QemuDriver(QemuOptions(read=request.param))


async def read(volume, offset, length):
    buffer = bytearray(length)
    await volume.read_into(offset, memoryview(buffer))
    return bytes(buffer)


async def test_reads_what_the_guest_would(qemu, driver):
    await qemu.io("write -P 0x5a 64k 64k")
    assert (await driver.probe(qemu.location)).size == SIZE
    async with await driver.open(qemu.location, Access.READ) as volume:
        assert volume.geometry == Geometry(SIZE, 512)
        assert await read(volume, 65536, 65536) == b"\x5a" * 65536
        assert await read(volume, 0, 65536) == bytes(65536)
        extents = [extent async for extent in volume.extents(0, SIZE)]
        data = [extent for extent in extents if extent.kind is ExtentKind.DATA]
        assert (65536, 65536) in [(each.offset, each.length) for each in data]
        assert sum(each.length for each in data) <= 65536 + 4096
        await qemu.io("write -P 0x33 64k 4k")
        assert await read(volume, 65536, 4096) == b"\x33" * 4096
    assert not await qemu.exports()
    assert not await qemu.serves()


async def test_several_at_once(qemu, driver):
    volumes = await asyncio.gather(*(driver.open(qemu.location, Access.READ) for _ in range(3)))
    assert len(await qemu.exports()) == 3
    for volume in volumes[1:]:
        await volume.close()
        await volume.close()
    assert await read(volumes[0], 0, 512) == bytes(512)
    await volumes[0].close()
    assert not await qemu.serves()


@pytest.mark.parametrize("turns", [0, 1, 3, 8, 15, 25, 40])
async def test_cancelled_open(qemu, driver, turns):
    opening = asyncio.create_task(driver.open(qemu.location, Access.READ))
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    if opening.cancel():
        await asyncio.wait([opening])
    if not opening.cancelled():
        await opening.result().close()
    assert not await qemu.exports()
    assert not await qemu.serves()


async def test_beside_a_server_of_the_users(qemu, driver):
    server = str(qemu.folder / "users")
    unix = {"type": "unix", "data": {"path": server}}
    await qemu.qmp.execute("nbd-server-start", addr=unix)
    await qemu.qmp.execute("block-export-add", type="nbd", id="backup", node_name="top")
    with pytest.raises(VolumeError, match=r"somebody else's runs .* name its unix socket"):
        await driver.open(qemu.location, Access.READ)
    location = str(NodeLocation(qemu.monitor, "top", server))
    async with await driver.open(location, Access.READ) as volume:
        assert await read(volume, 0, 512) == bytes(512)
    assert await qemu.exports() == ["backup"]
    await (await NbdClient.connect(server, "top")).close()


async def test_an_export_of_another_on_our_server(qemu, driver):
    async with await driver.open(qemu.location, Access.READ):
        await qemu.qmp.execute("block-export-add", type="nbd", id="late", node_name="top")
    assert await qemu.exports() == ["late"]
    async with await driver.open(qemu.location, Access.READ) as volume:
        assert await read(volume, 0, 512) == bytes(512)
    assert await qemu.exports() == ["late"]
    assert await qemu.serves()


async def test_what_a_dead_process_left_is_removed(qemu, driver):
    left, living = f"vmferry-{DEAD}-disk-1", f"vmferry-{os.getppid()}-disk-1"
    volume = await driver.open(qemu.location, Access.READ)
    for name in (left, living):
        await qemu.qmp.execute("block-export-add", type="nbd", id=name, node_name="top", name=name)
    await volume.close()
    async with await driver.open(qemu.location, Access.READ):
        names = await qemu.exports()
        assert left not in names
        assert living in names


async def test_after_its_migration_completed(qemu, driver):
    await qemu.io("write -P 0x5a 64k 64k")
    async with await driver.open(qemu.location, Access.READ) as volume:
        await qemu.migrate()
        assert await read(volume, 65536, 512) == b"\x5a" * 512
        await qemu.complete()
        assert await read(volume, 65536, 65536) == b"\x5a" * 65536
    assert not await qemu.exports()
    async with await driver.open(qemu.location, Access.READ) as volume:  # resumed, say
        assert await read(volume, 65536, 65536) == b"\x5a" * 65536
    assert not await qemu.serves()


async def test_end_of_qemu(qemu, by_nbd):
    volume = await by_nbd.open(qemu.location, Access.READ)
    assert os.path.exists(_place(qemu.monitor))
    await qemu.kill()
    with pytest.raises(VolumeError, match=r"can no longer be read.*is QEMU running"):
        await read(volume, 0, 512)
    await volume.close()
    assert not os.path.exists(_place(qemu.monitor))


async def test_not_there(qemu, driver):
    for location in (f"qmp:{qemu.monitor}?node=none", f"qmp:{qemu.monitor}x?node=top"):
        for attempt in (driver.probe(location), driver.open(location, Access.READ)):
            with pytest.raises(VolumeMissing):
                await attempt
    assert not await qemu.serves()


async def test_only_read(qemu, driver, by_nbd):
    with pytest.raises(VolumeError, match="only be read"):
        await driver.open(qemu.location, Access.WRITE)
    with pytest.raises(VolumeError, match="cannot be made"):
        await driver.create(qemu.location, Geometry(SIZE))
    await driver.remove(qemu.location)
    async with await by_nbd.open(qemu.location, Access.READ) as volume:
        with pytest.raises(VolumeError, match="reading only"):
            await volume.write(0, memoryview(bytes(512)))


async def test_a_monitor_that_another_program_has_is_not_missing(qemu):
    await qemu.qmp.close()
    reader, writer = await asyncio.open_unix_connection(qemu.monitor)
    await reader.readline()
    try:
        with pytest.raises(VolumeError) as caught:
            await QemuDriver(QemuOptions(connect_timeout=0.2)).open(qemu.location, Access.READ)
        assert not isinstance(caught.value, VolumeMissing)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_monitor_that_is_gone_is_missing(qemu):
    await qemu.kill()
    await qemu.qmp.close()
    with pytest.raises(VolumeMissing):
        await QemuDriver().open(qemu.location, Access.READ)
