"""When a running QEMU's disk is read by its file, and when it must not be."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from vmferry.api.volume import Access
from vmferry.errors import VolumeBusy, VolumeError
from vmferry_support.qmp import Qmp
from vmferry_volumes.nbd_volume import NbdVolume
from vmferry_volumes.qemu.driver import QemuDriver
from vmferry_volumes.qemu.location import NodeLocation
from vmferry_volumes.qemu.plain import PlainVolume, _file_of
from vmferry_volumes.raw import RawDriver
from vmferry_volumes.raw_volume import RawVolume

pytestmark = pytest.mark.real
PIECE = 65536


@pytest.fixture
def form():
    return "raw"


@pytest.fixture
def loop_device(tmp_path):
    backing = tmp_path / "backing"
    backing.touch()
    os.truncate(backing, 4 << 20)
    made = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


async def opened(qemu, node="top"):
    return await QemuDriver().open(str(NodeLocation(qemu.monitor, node)), Access.READ)


async def read(volume, offset, length=512):
    buffer = bytearray(length)
    await volume.read_into(offset, memoryview(buffer))
    return bytes(buffer)


async def add(qemu, path, *, direct=False, **raw):
    """Another raw node, ``other``, over a file of its own."""
    path.touch()
    os.truncate(path, 1 << 20)
    cache = {"direct": direct, "no-flush": False}
    file = {"driver": "file", "filename": str(path), "cache": cache}
    await qemu.qmp.execute(
        "blockdev-add", {"driver": "raw", "node-name": "other", "file": file, **raw}
    )


async def test_a_raw_file_is_read_itself_and_its_export_is_there(qemu):
    await qemu.io("write -P 0x5a 64k 64k")
    async with await opened(qemu) as volume:
        assert isinstance(volume, PlainVolume)
        assert await read(volume, PIECE, PIECE) == b"\x5a" * PIECE
        (export,) = await qemu.exports()
        assert export.startswith(f"vmferry-{os.getpid()}-disk")
    assert not await qemu.exports()
    assert not await qemu.serves()


async def test_it_is_read_when_qemu_is_gone(qemu):
    await qemu.io("write -P 0x5a 64k 64k")
    async with await opened(qemu) as volume:
        await qemu.kill()
        assert await read(volume, PIECE) == b"\x5a" * 512


async def read_until_refused(volume):
    async with asyncio.timeout(10):
        while True:  # until the end of QEMU has been noticed
            await read(volume, PIECE)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("machine", [("-S", "-device", "virtio-blk-pci,drive=top")])
async def test_it_is_not_read_on_when_another_guest_has_it(qemu):
    async with await opened(qemu) as volume:
        await qemu.kill()
        await qemu.qmp.close()
        await qemu.start()
        with pytest.raises(VolumeError, match="written by another"):
            await read_until_refused(volume)


@pytest.mark.parametrize("machine", [("-S", "-device", "virtio-blk-pci,drive=top")])
async def test_a_device_is_not_read_on_when_another_guest_has_it(qemu, loop_device):
    await qemu.kill()
    await qemu.qmp.close()
    qemu.image = loop_device
    await qemu.start()
    async with await opened(qemu) as volume:
        assert isinstance(volume, PlainVolume)
        await read(volume, PIECE)
        await qemu.kill()
        await qemu.qmp.close()
        await qemu.start()
        with pytest.raises(VolumeError, match="written by another"):
            await read_until_refused(volume)


async def test_nobody_else_can_have_it_once_qemu_is_gone(qemu):
    async with await opened(qemu) as volume:
        await qemu.kill()
        await asyncio.sleep(0.1)
        await asyncio.gather(*[read(volume, number * PIECE) for number in range(8)])
        with pytest.raises(VolumeBusy):
            await RawDriver().open(str(qemu.image), Access.WRITE)
    await (await RawDriver().open(str(qemu.image), Access.WRITE)).close()


async def test_a_close_that_fails_leaves_no_export(qemu, monkeypatch):
    async def fail(self):
        await close(self)
        raise OSError("made up")

    close = RawVolume.close
    volume = await opened(qemu)
    monkeypatch.setattr(RawVolume, "close", fail)
    with pytest.raises(OSError, match="made up"):
        await volume.close()
    assert not await qemu.exports()


@pytest.mark.parametrize("name", ["/proc/self/fd/{}", "/dev/fd/{}"])
async def test_a_name_that_is_another_file_for_each_process_is_left_to_qemu(qemu, name):
    with qemu.image.open("rb") as file:
        nodes = [
            {"node-name": "top", "drv": "raw", "file": name.format(file.fileno())},
            {"drv": "file", "file": name.format(file.fileno()), "cache": {"direct": False}},
        ]
        assert _file_of(nodes, "top") is None


@pytest.mark.parametrize("direct", [False, True])
async def test_it_goes_past_the_cache_if_qemu_does(qemu, tmp_path, direct):
    await add(qemu, tmp_path / "other.raw", direct=direct)
    async with await opened(qemu, "other") as volume:
        assert isinstance(volume, PlainVolume)
        assert volume._disk.direct is direct
        for number in range(1, 60):  # what was acknowledged is there, whoever has cached what
            place = number % 7 * 4096
            await qemu.io_on("other", f"write -P {number} {place} 4k")
            assert await read(volume, place, 4096) == bytes([number]) * 4096


@pytest.mark.parametrize(
    "raw", [{"offset": 4096}, {"size": 65536}], ids=["an offset", "a size of its own"]
)
async def test_a_part_of_a_file_is_left_to_qemu(qemu, tmp_path, raw):
    await add(qemu, tmp_path / "other.raw", **raw)
    async with await opened(qemu, "other") as volume:
        assert isinstance(volume, NbdVolume)


async def test_a_filter_is_left_to_qemu(qemu):
    group = {"qom-type": "throttle-group", "id": "slow"}
    await qemu.qmp.execute("object-add", group)
    slow = {"driver": "throttle", "node-name": "other", "throttle-group": "slow", "file": "top"}
    await qemu.qmp.execute("blockdev-add", slow)
    async with await opened(qemu, "other") as volume:
        assert isinstance(volume, NbdVolume)


async def test_another_file_in_its_place_is_not_taken_for_it(qemu):
    await qemu.io("write -P 0x5a 64k 64k")
    os.rename(qemu.image, f"{qemu.image}.moved")
    qemu.image.write_bytes(bytes(os.stat(f"{qemu.image}.moved").st_size))
    async with await opened(qemu) as volume:
        assert isinstance(volume, NbdVolume)
        assert await read(volume, PIECE) == b"\x5a" * 512


async def test_a_monitor_that_somebody_else_made_shows_no_files(qemu, monkeypatch):
    real = Qmp.connect

    async def connect(*args, **more):
        qmp = await real(*args, **more)
        qmp.process = os.getppid()
        return qmp

    monkeypatch.setattr(Qmp, "connect", connect)
    async with await opened(qemu) as volume:
        assert isinstance(volume, NbdVolume)


@pytest.mark.parametrize("turns", [0, 1, 3, 8, 15, 25])
async def test_a_cancelled_open_leaves_nothing(qemu, turns):
    before = len(os.listdir("/proc/self/fd"))
    opening = asyncio.create_task(opened(qemu))
    for _ in range(turns):
        await asyncio.sleep(0.001)
    if opening.cancel():
        await asyncio.wait([opening])
    if not opening.cancelled():
        await opening.result().close()
    assert not await qemu.exports()
    assert len(os.listdir("/proc/self/fd")) <= before
