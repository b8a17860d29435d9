"""The volume ``qcow2`` beyond its contract: odd images, other programs, deaths."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from vmferry.api.volume import Access, ExtentKind, Geometry
from vmferry.errors import VolumeBusy, VolumeError, VolumeExists, VolumeGeometry, VolumeMissing
from vmferry_support.commands import run
from vmferry_volumes.qcow2.driver import Qcow2Driver, Qcow2Options

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("qemu-storage-daemon") is None, reason="qemu-storage-daemon is not installed"
    ),
]
MIB = 1 << 20


def image(*arguments):
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def daemons(path):
    """The storage daemons that have the image open."""
    found = []
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        line = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and "storage-daemon" in " ".join(line):
            found += [process] * any(str(path) in argument for argument in line)
    return found


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """A folder for temporary files that no other test uses; its path is short, for sockets.

    It comes after ``tmp_path``, whose base pytest makes in the temporary folder of that moment.
    """
    with tempfile.TemporaryDirectory(prefix="q-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


async def read(volume, offset, length):
    buffer = bytearray(length)
    await volume.read_into(offset, memoryview(buffer))
    return bytes(buffer)


async def test_sparse_stays_sparse(tmp_path):
    path = tmp_path / "disk.qcow2"
    async with await Qcow2Driver().create(str(path), Geometry(1 << 30)) as volume:
        await volume.write(512 * MIB, memoryview(b"\x5a" * MIB))
        await volume.write_zeroes(0, 256 * MIB)
        await volume.flush()
        found = [extent async for extent in volume.extents(0, 1 << 30)]
        assert [each.kind is ExtentKind.DATA for each in found].count(True) == 1
        assert sum(each.length for each in found if each.kind is ExtentKind.DATA) == MIB
        await volume.discard(512 * MIB, MIB)
        assert not [e async for e in volume.extents(0, 1 << 30) if e.kind is ExtentKind.DATA]
    assert path.stat().st_blocks * 512 < 3 * MIB
    assert path.stat().st_mode & 0o777 == 0o600
    image("check", "-f", "qcow2", path)


async def test_large_requests_and_many_at_once(tmp_path):
    path, flat = tmp_path / "disk.qcow2", tmp_path / "flat"
    data = os.urandom(40 * MIB)
    flat.write_bytes(data)
    async with await Qcow2Driver().create(str(path), Geometry(40 * MIB)) as volume:
        await volume.write(0, memoryview(data))
        pieces = await asyncio.gather(*(read(volume, k * MIB, MIB) for k in range(40)))
        assert b"".join(pieces) == data
        assert await read(volume, 0, 40 * MIB) == data
    image("compare", "-f", "qcow2", "-F", "raw", path, flat)


async def test_backing_file(tmp_path):
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"\x11" * MIB)
    image("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    for attempt in (Qcow2Driver().probe(str(top)), Qcow2Driver().open(str(top), Access.READ)):
        with pytest.raises(VolumeError, match=r"backing file .*base.raw.*; set backing=flatten"):
            await attempt
    flatten = Qcow2Driver(Qcow2Options(backing="flatten"))
    async with await flatten.open(str(top), Access.READ) as volume:
        assert await read(volume, 0, MIB) == b"\x11" * MIB
        assert [e.kind async for e in volume.extents(0, MIB)] == [ExtentKind.DATA]


async def test_backing_file_of_unknown_format(tmp_path):
    """QEMU would guess the format from what a guest may have written."""
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"\x11" * MIB)
    image("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    backing_format = b"\xe2\x79\x2a\xca"  # docs/interop/qcow2.txt, header extensions
    written = top.read_bytes()
    assert written.count(backing_format) == 1
    top.write_bytes(written.replace(backing_format, b"none"))
    with pytest.raises(VolumeError, match="qemu-img rebase"):
        await Qcow2Driver(Qcow2Options(backing="flatten")).probe(str(top))


async def test_data_file(tmp_path):
    path = tmp_path / "disk.qcow2"
    option = f"data_file={tmp_path / 'data'},data_file_raw=on"
    image("create", "-q", "-f", "qcow2", "-o", option, path, MIB)
    with pytest.raises(VolumeError, match="keeps its data in another file"):
        await Qcow2Driver().open(str(path), Access.READ)


async def test_not_an_image(tmp_path):
    path = tmp_path / "disk.qcow2"
    path.write_bytes(bytes(MIB))
    with pytest.raises(VolumeGeometry, match="no sound qcow2 image"):
        await Qcow2Driver().probe(str(path))
    with pytest.raises(VolumeGeometry, match="neither a regular file"):
        await Qcow2Driver().probe(str(tmp_path))
    image("create", "-q", "-f", "qcow2", tmp_path / "empty", 0)
    with pytest.raises(VolumeGeometry, match="a disk of 0 bytes"):
        await Qcow2Driver().probe(str(tmp_path / "empty"))


async def test_a_name_is_no_url(tmp_path, monkeypatch):
    """``nbd:`` or ``json:`` before a path would have QEMU open something else."""
    monkeypatch.chdir(tmp_path)
    for name in ("nbd:unix:socket", 'json:{"driver":"null-co"}', "a,b=c"):
        with pytest.raises(VolumeMissing):
            await Qcow2Driver().probe(name)
        async with await Qcow2Driver().create(name, Geometry(MIB)) as volume:
            await volume.write(0, memoryview(b"\x5a" * 512))
        assert (tmp_path / name).stat().st_size


async def test_places_where_none_can_be_made(tmp_path):
    (tmp_path / "there").touch()
    with pytest.raises(VolumeExists):
        await Qcow2Driver().create(str(tmp_path / "there"), Geometry(MIB))
    with pytest.raises(VolumeError, match="folder of"):
        await Qcow2Driver().create(str(tmp_path / "no" / "disk"), Geometry(MIB))
    assert not (tmp_path / "there").stat().st_size


async def test_another_program_writes_it(tmp_path):
    path = tmp_path / "disk.qcow2"
    await (await Qcow2Driver().create(str(path), Geometry(MIB))).close()
    other = subprocess.Popen(  # noqa: ASYNC220
        ["qemu-io", "--image-opts", f"driver=qcow2,file.driver=file,file.filename={path}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        other.stdin.write(b"write 0 512\n")
        other.stdin.flush()
        assert other.stdout.readline()
        with pytest.raises(VolumeBusy, match="in use by somebody else"):
            await Qcow2Driver().open(str(path), Access.WRITE)
        with pytest.raises(VolumeBusy, match="by the volume qemu"):
            await Qcow2Driver().open(str(path), Access.READ)
        assert (await Qcow2Driver().probe(str(path))).size == MIB
    finally:
        other.communicate(b"quit\n")
    async with await Qcow2Driver().open(str(path), Access.READ):
        image("check", "-f", "qcow2", path)  # a reader locks nobody out
        image("resize", "-f", "qcow2", path, "+1M")


async def test_unlocked_it_can_be_written_by_another_program(tmp_path):
    path = tmp_path / "disk.qcow2"
    async with await Qcow2Driver().create(str(path), Geometry(MIB)) as volume:
        await volume.write(0, memoryview(b"\x5a" * 4096))
        with pytest.raises(subprocess.CalledProcessError):
            image("bench", "-w", "-c", "1", "-f", "qcow2", path)
        await volume.unlock()
        await run("qemu-io", "-f", "qcow2", "-c", "write -P 1 64k 4k", str(path))
        assert await read(volume, 0, 4096) == b"\x5a" * 4096
        await volume.flush()
        with pytest.raises(VolumeError, match="reading only"):
            await volume.write(0, memoryview(bytes(512)))
    image("check", "-f", "qcow2", path)


async def test_death_of_the_daemon(tmp_path):
    path = tmp_path / "disk.qcow2"
    volume = await Qcow2Driver().create(str(path), Geometry(64 * MIB))
    [daemon] = daemons(path)
    writes = [
        asyncio.create_task(volume.write(k * MIB, memoryview(b"\x5a" * MIB))) for k in range(8)
    ]
    daemon.kill()
    ended = await asyncio.gather(*writes, return_exceptions=True)
    assert all(each is None or isinstance(each, VolumeError) for each in ended)
    with pytest.raises(VolumeError, match=r"disk.qcow2 is no longer served: .*qemu-img check"):
        await volume.flush()
    await volume.close()
    async with await Qcow2Driver().open(str(path), Access.WRITE) as volume:
        await volume.write(0, memoryview(b"\x5a" * MIB))


async def test_nothing_is_left(tmp_path, temporary):
    path = tmp_path / "disk.qcow2"
    async with await Qcow2Driver().create(str(path), Geometry(MIB)):
        assert len(daemons(path)) == 1
        assert not os.listdir(temporary)
    assert not daemons(path)
    assert os.listdir(tmp_path) == ["disk.qcow2"]


OPENS = """
import asyncio, sys
from vmferry.api.volume import Access
from vmferry_volumes.qcow2.driver import Qcow2Driver

async def main():
    async with await Qcow2Driver().open(sys.argv[1], Access.WRITE):
        print("open", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def start(path):
    return subprocess.Popen([sys.executable, "-c", OPENS, str(path)], stdout=subprocess.PIPE)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_is_left_of_a_process_that_died(tmp_path, temporary, end):
    path = tmp_path / "disk.qcow2"
    await (await Qcow2Driver().create(str(path), Geometry(MIB))).close()
    process = start(path)
    with process.stdout:
        assert process.stdout.readline() == b"open\n"
        assert len(daemons(path)) == 1
        process.send_signal(end)
        process.wait()
    deadline = time.monotonic() + 60
    while daemons(path):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert not os.listdir(temporary)
    async with await Qcow2Driver().open(str(path), Access.WRITE):
        pass


async def test_no_daemon_installed(tmp_path, monkeypatch):
    path = tmp_path / "disk.qcow2"
    tools = Path(tmp_path / "bin")
    tools.mkdir()
    (tools / "qemu-img").symlink_to(shutil.which("qemu-img"))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(Exception, match="qemu-storage-daemon is not installed"):
        await Qcow2Driver().create(str(path), Geometry(MIB))
    assert not path.exists()
