"""The tracker ``qcow2`` in a real QEMU: its bitmaps, and those of others."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest

from vmferry.api.volume import Access
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError, VolumeError
from vmferry_support.commands import run
from vmferry_support.nbd import NbdClient
from vmferry_trackers.qcow2.copies import sweep_copies
from vmferry_trackers.qcow2.options import Qcow2TrackerOptions
from vmferry_trackers.qcow2.tracker import Qcow2Tracker
from vmferry_volumes.qemu.driver import QemuDriver

pytestmark = pytest.mark.real
SIZE = 4 << 20
DEAD = (1 << 22) + 1  # no process has such a number


@pytest.fixture
async def tracker():
    tracker = Qcow2Tracker()
    yield tracker
    await tracker.stop()


async def add(qemu, name, **more):
    await qemu.qmp.execute("block-dirty-bitmap-add", node="top", name=name, **more)


def blocks(*numbers, block=4096):
    return DirtyMap.from_runs(SIZE, block, [(number * block, block) for number in numbers])


async def test_rounds(qemu, tracker):
    assert await tracker.start(qemu.disk, 4096) == 4096
    await qemu.io("write 64k 1k")
    await qemu.io("write -z 132k 4k")
    assert await tracker.harvest() == blocks(16, 33)
    assert not await tracker.harvest()
    await qemu.io("discard 0 64k")
    await qemu.io("write 4190208 4k")
    assert await tracker.harvest() == blocks(*range(16), 1023)
    await tracker.stop()
    assert not await qemu.bitmaps()
    assert not await qemu.exports()
    assert not await qemu.serves()


async def test_pause_before_the_switch_and_after(qemu, tracker):
    """The last harvest is taken in the pause; the disk's export serves on when all is over."""
    async with await QemuDriver().open(qemu.location, Access.READ) as volume:
        await tracker.start(qemu.disk, 65536)
        await qemu.io("write -P 0x5a 1M 64k")
        await qemu.migrate()
        await tracker.drain()
        assert await tracker.harvest() == blocks(16, block=65536)
        await qemu.complete()
        await tracker.stop()
        assert not await qemu.bitmaps()
        buffer = bytearray(65536)
        await volume.read_into(1 << 20, memoryview(buffer))
        assert buffer == b"\x5a" * 65536
    assert not await qemu.exports()


async def test_a_cancelled_migration(qemu, tracker):
    await tracker.start(qemu.disk, 4096)
    await qemu.migrate()
    await qemu.io("write 0 4k")
    assert await tracker.harvest() == blocks(0)
    with qemu.qmp.listen("MIGRATION") as heard:
        await qemu.qmp.execute("migrate_cancel")
        await heard.wait(lambda event: event.data["status"] == "cancelled", timeout=60)
    await qemu.io("write 8k 4k")
    assert await tracker.harvest() == blocks(2)


async def test_bitmaps_of_others_are_left_alone(qemu, tracker):
    await add(qemu, "backup", granularity=65536)
    await qemu.io("write 0 4k")
    before = await qemu.bitmaps()
    await tracker.start(qemu.disk, 4096)
    await qemu.io("write 128k 4k")
    assert await tracker.harvest() == blocks(32)
    await tracker.stop()
    after = await qemu.bitmaps()
    assert after.keys() == before.keys() == {"backup"}
    assert (before["backup"]["count"], after["backup"]["count"]) == (65536, 131072)


async def test_what_a_dead_process_left_is_removed(qemu, tracker):
    """Also an exported snapshot, which is busy until its export is gone."""
    await add(qemu, f"vmferry-{DEAD}-dirty-a")
    await add(qemu, f"vmferry-{DEAD}-dirty-b", disabled=True)
    volume = await QemuDriver().open(qemu.location, Access.READ)
    await qemu.qmp.execute(
        "block-export-add",
        type="nbd",
        id=f"vmferry-{DEAD}-dirty-1",
        node_name="top",
        bitmaps=[f"vmferry-{DEAD}-dirty-b"],
    )
    await qemu.qmp.execute(
        "blockdev-add", driver="null-co", node_name=f"vmferry-{DEAD}-copy-1", size=SIZE
    )
    await volume.close()
    await tracker.start(qemu.disk, 4096)
    assert set(await qemu.bitmaps()) == {f"vmferry-{os.getpid()}-dirty-a"}
    assert not await qemu.exports()
    nodes = await qemu.qmp.execute("query-named-block-nodes", flat=True)
    assert not [node for node in nodes if node["node-name"].startswith("vmferry-")]


@pytest.mark.parametrize("form", ["raw"])
async def test_copies_of_a_dead_process_may_be_removed_by_two_at_once(qemu):
    left = f"vmferry-{DEAD}-copy-1"
    await qemu.qmp.execute("blockdev-add", driver="null-co", node_name=left, size=SIZE)
    await asyncio.gather(sweep_copies(qemu.qmp), sweep_copies(qemu.qmp))
    nodes = await qemu.qmp.execute("query-named-block-nodes", flat=True)
    assert left not in [node["node-name"] for node in nodes]


async def test_tracked_by_a_living_process(qemu, tracker):
    name = f"vmferry-{os.getppid()}-dirty-a"
    await add(qemu, name)
    found = await tracker.check(qemu.disk, 4096)
    assert [finding.code for finding in found] == ["qcow2-tracked"]
    with pytest.raises(TrackerError, match="tracked by somebody else"):
        await tracker.start(qemu.disk, 4096)
    assert set(await qemu.bitmaps()) == {name}


@pytest.mark.parametrize("command", ["block-dirty-bitmap-remove", "block-dirty-bitmap-disable"])
async def test_a_lost_bitmap_means_everything(qemu, tracker, command):
    await tracker.start(qemu.disk, 4096)
    await qemu.qmp.execute(command, node="top", name=f"vmferry-{os.getpid()}-dirty-a")
    await qemu.io("write 0 4k")
    assert await tracker.harvest() == DirtyMap.full(SIZE, 4096)
    await qemu.io("write 8k 4k")
    assert await tracker.harvest() == blocks(2)


@pytest.mark.parametrize("machine", [("-S", "-device", "virtio-blk-pci,drive=top,share-rw=on")])
async def test_a_guest_that_was_put_on_another_node_is_not_tracked(qemu, tracker):
    """A snapshot leaves the bitmap where it is: what is written above it would be lost."""
    overlay = str(qemu.folder / "overlay")
    await run("qemu-img", "create", "-q", "-f", "qcow2", overlay, str(SIZE))
    await tracker.start(qemu.disk, 4096)
    await qemu.io("write 64k 1k")
    assert await tracker.harvest() == blocks(16)
    file = {"driver": "file", "filename": overlay}
    above = {"driver": "qcow2", "node-name": "above", "file": file, "backing": None}
    await qemu.qmp.execute("blockdev-add", above)
    await qemu.qmp.execute("blockdev-snapshot", node="top", overlay="above")
    await qemu.io_on("above", "write 128k 4k")
    with pytest.raises(TrackerError, match="snapshot"):
        await tracker.harvest()
    await tracker.stop()
    assert not await qemu.bitmaps()


async def test_a_failed_harvest_forgets_nothing(qemu, tracker):
    """The export fails, since the server is another's; when that is gone, all is there."""
    await tracker.start(qemu.disk, 4096)
    await qemu.io("write 0 4k")
    await qemu.io("write 64k 4k")
    address = {"type": "unix", "data": {"path": str(qemu.folder / "users")}}
    await qemu.qmp.execute("nbd-server-start", addr=address)
    for _ in range(2):
        with pytest.raises(TrackerError, match=r"disk0.*nbd=PATH"):
            await tracker.harvest()
    await qemu.io("write 8k 4k")
    await qemu.qmp.execute("nbd-server-stop")
    assert await tracker.harvest() == blocks(0, 2, 16)


async def test_a_round_without_writes_needs_no_export(qemu, tracker):
    """None could be had, since the server is another's."""
    await tracker.start(qemu.disk, 4096)
    address = {"type": "unix", "data": {"path": str(qemu.folder / "users")}}
    await qemu.qmp.execute("nbd-server-start", addr=address)
    assert not await tracker.harvest()
    await qemu.io("write 4k 4k")
    await qemu.qmp.execute("nbd-server-stop")
    assert await tracker.harvest() == blocks(1)


async def test_a_round_left_in_the_middle(qemu, tracker):
    """Neither merged nor removed: the next harvest finds it."""
    await tracker.start(qemu.disk, 4096)
    await qemu.io("write 0 4k")
    await tracker._bitmaps.swap(4096)
    await qemu.io("write 8k 4k")
    assert await tracker.harvest() == blocks(0, 2)


@pytest.mark.parametrize("pause", [0, 0.001, 0.002, 0.004, 0.008, 0.016])
async def test_a_cancelled_harvest(qemu, tracker, pause):
    await tracker.start(qemu.disk, 4096)
    await qemu.io("write 0 4k")
    harvest = asyncio.create_task(tracker.harvest())
    await asyncio.sleep(pause)
    harvest.cancel()
    await asyncio.wait([harvest])
    found = DirtyMap(SIZE, 4096) if harvest.cancelled() else harvest.result()
    await qemu.io("write 8k 4k")
    assert found | await tracker.harvest() == blocks(0, 2)


async def test_base(qemu):
    """What an earlier bitmap holds is in the first harvest, and stays in that bitmap."""
    await add(qemu, "since-then", granularity=65536)
    await qemu.io("write 128k 4k")
    tracker = Qcow2Tracker(Qcow2TrackerOptions(base="since-then"))
    await tracker.start(qemu.disk, 4096)
    await qemu.io("write 0 4k")
    assert await tracker.harvest() == blocks(0, *range(32, 48))
    assert not await tracker.harvest()
    await tracker.stop()
    assert (await qemu.bitmaps())["since-then"]["recording"]


@pytest.mark.parametrize("form", ["qcow2"])
async def test_a_base_that_the_image_kept(qemu):
    """The bitmap was stored when QEMU ended in good order, and records on in the next one."""
    await add(qemu, "since-then", persistent=True, granularity=4096)
    await qemu.io("write 128k 4k")
    await qemu.quit()
    await qemu.start()
    await qemu.io("write 256k 4k")
    tracker = Qcow2Tracker(Qcow2TrackerOptions(base="since-then"))
    await tracker.start(qemu.disk, 4096)
    assert await tracker.harvest() == blocks(32, 64)
    await tracker.stop()
    await qemu.quit()
    await qemu.start()
    assert (await qemu.bitmaps())["since-then"]["recording"]


@pytest.mark.parametrize("disabled", [True, None])
async def test_a_base_that_is_worth_nothing(qemu, disabled):
    if disabled:
        await add(qemu, "since-then", disabled=True)
    tracker = Qcow2Tracker(Qcow2TrackerOptions(base="since-then"))
    await tracker.start(qemu.disk, 4096)
    assert await tracker.harvest() == DirtyMap.full(SIZE, 4096)
    assert not await tracker.harvest()
    await tracker.stop()


@pytest.mark.parametrize("form", ["qcow2"])
async def test_an_inconsistent_base(qemu):
    """QEMU was killed with a persistent bitmap in use: it can only be removed, by its owner."""
    await add(qemu, "since-then", persistent=True)
    await qemu.quit()
    await qemu.start()
    assert (await qemu.bitmaps())["since-then"]["recording"]
    await qemu.io("write 0 4k")
    await qemu.kill()
    await qemu.start()
    assert (await qemu.bitmaps())["since-then"]["inconsistent"]
    tracker = Qcow2Tracker(Qcow2TrackerOptions(base="since-then"))
    await tracker.start(qemu.disk, 4096)
    assert await tracker.harvest() == DirtyMap.full(SIZE, 4096)
    await tracker.stop()
    assert (await qemu.bitmaps())["since-then"]["inconsistent"]


async def test_end_of_qemu(qemu, tracker):
    await tracker.start(qemu.disk, 4096)
    await qemu.kill()
    with pytest.raises(TrackerError, match="disk0"):
        await tracker.harvest()
    await tracker.stop()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"qmp": ""}, "no fact 'qmp'"),
        ({"node": ""}, "no fact 'node'"),
        ({"qmp": "/nowhere/qmp"}, "cannot connect"),
        ({"node": "nobody"}, "no block node 'nobody'; it has: "),
    ],
)
async def test_wrong_facts(qemu, tracker, facts, says):
    disk = msgspec.structs.replace(qemu.disk, facts={**qemu.disk.facts, **facts})
    [finding] = await tracker.check(disk, 4096)
    assert says in finding.text
    with pytest.raises(TrackerError, match=says):
        await tracker.start(disk, 4096)


async def test_a_disk_in_an_iothread(qemu, tracker):
    """Exporting the disk itself brings QEMU down before 9.0: the tracker does not do so."""
    await qemu.qmp.execute("object-add", qom_type="iothread", id="thread")
    await qemu.qmp.execute("x-blockdev-set-iothread", node_name="top", iothread="thread")
    assert not await tracker.check(qemu.disk, 4096)
    await tracker.start(qemu.disk, 4096)
    await qemu.io("write 128k 4k")
    assert await tracker.harvest() == blocks(32)
    await tracker.stop()
    assert not await qemu.bitmaps()
    if qemu.qmp.version < (9, 0, 0):
        with pytest.raises(VolumeError, match="iothreads"):
            await QemuDriver().open(qemu.location, Access.READ)


async def test_another_size(qemu, tracker):
    disk = msgspec.structs.replace(qemu.disk, size=SIZE // 2)
    assert "bytes" in (await tracker.check(disk, 4096))[0].text
    with pytest.raises(TrackerError, match="has 2097152 bytes, but"):
        await tracker.start(disk, 4096)
    assert not await qemu.bitmaps()


@pytest.mark.parametrize("form", ["raw"])
async def test_drain_waits_for_writes_under_way(qemu, tracker):
    """Throttled, the writes would take a quarter of an hour; draining lets them go at once."""
    await qemu.qmp.execute(
        "object-add", id="slow", qom_type="throttle-group", limits={"bps-write": 4096}
    )
    await qemu.qmp.execute(
        "blockdev-add", driver="throttle", node_name="above", throttle_group="slow", file="top"
    )
    server = str(qemu.folder / "guests")
    facts = {**qemu.disk.facts, "nbd": server}
    await tracker.start(msgspec.structs.replace(qemu.disk, facts=facts), 4096)
    unix = {"type": "unix", "data": {"path": server}}
    await qemu.qmp.execute("nbd-server-start", addr=unix)
    await qemu.qmp.execute(
        "block-export-add", type="nbd", id="guest", node_name="above", writable=True
    )
    async with await NbdClient.connect(server, "above") as guest:
        data = memoryview(b"\x5a" * (1 << 20))
        writes = [asyncio.create_task(guest.write(each << 20, data)) for each in range(4)]
        try:
            done, _ = await asyncio.wait(writes, timeout=0.5)
            assert len(done) < 2
            await tracker.drain()
            done, _ = await asyncio.wait(writes, timeout=120)
            assert len(done) == 4
            assert await tracker.harvest() == DirtyMap.full(SIZE, 4096)
        finally:
            await guest.close()
            await asyncio.gather(*writes, return_exceptions=True)
