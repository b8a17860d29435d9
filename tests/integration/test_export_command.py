"""``migrate export`` as a process of its own, tracked and read from outside."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import sys
from contextlib import asynccontextmanager

import pytest

from vmferry.api import Disk
from vmferry.errors import TrackerError
from vmferry_trackers.export import ExportTracker

pytestmark = pytest.mark.real

BLOCK = 65536
SIZE = 256 * BLOCK
qemu_io = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed")


@asynccontextmanager
async def exported(folder, *flags):
    """The process and its ready line; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmferry", "export", str(folder / "a.img")),
        *("--socket", "n.sock", "--control", "c.sock", *flags),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(300):
            yield process, (await process.stdout.readline()).decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def described(folder):
    facts = {"control": str(folder / "c.sock"), "export": "disk0"}
    return Disk(name="disk0", size=SIZE, facts=facts)


async def write_with_qemu(folder, *commands):
    arguments = [part for command in commands for part in ("-c", command)]
    process = await asyncio.create_subprocess_exec(
        "qemu-io",
        *("-f", "raw", *arguments, f"nbd+unix:///disk0?socket={folder}/n.sock"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0


@qemu_io
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_track_and_end(image, tmp_path, number):
    async with exported(tmp_path, "--json") as (process, line):
        ready = json.loads(line)
        assert ready["event"] == "ready"
        assert ready["control"] == str(tmp_path / "c.sock")
        tracker, disk = ExportTracker(), described(tmp_path)
        assert await tracker.check(disk, BLOCK) == []
        await tracker.start(disk, BLOCK)
        await write_with_qemu(tmp_path, "write -P 7 64k 4k", "write -z 1M 64k", "discard 2M 64k")
        await tracker.drain()
        found = list((await tracker.harvest()).runs())
        assert found == [(BLOCK, BLOCK), (16 * BLOCK, BLOCK), (32 * BLOCK, BLOCK)]
        process.send_signal(number)
        output = await process.communicate()
        assert process.returncode == 0, output
        with pytest.raises(TrackerError):
            await tracker.harvest()
        await tracker.stop()
    assert image.read_bytes()[BLOCK : BLOCK + 4096] == b"\7" * 4096
    assert [path.name for path in tmp_path.iterdir()] == ["a.img"]


async def test_the_ready_line_for_people(image, tmp_path):
    async with exported(tmp_path, "--read-only", "--name", "root") as (_, line):
        assert line.startswith("ready ")
        assert f"export=root socket={tmp_path}/n.sock control={tmp_path}/c.sock" in line


async def test_sockets_of_a_killed_process_are_replaced(image, tmp_path):
    async with exported(tmp_path) as (process, line):
        assert line
        process.kill()
        await process.wait()
    assert (tmp_path / "n.sock").exists()
    async with exported(tmp_path) as (_, line):
        assert line.startswith("ready ")


@pytest.mark.parametrize("wrong", ["missing disk", "busy socket"])
async def test_it_says_what_is_wrong(image, tmp_path, wrong):
    if wrong == "missing disk":
        image.unlink()
        async with exported(tmp_path) as (process, line):
            error = (await process.communicate())[1].decode()
    else:
        (tmp_path / "c.sock").write_text("not a socket")
        async with exported(tmp_path) as (process, line):
            error = (await process.communicate())[1].decode()
    assert line == ""
    assert process.returncode == 2
    assert ("a.img" if wrong == "missing disk" else "is not a socket") in error
    assert "Traceback" not in error
