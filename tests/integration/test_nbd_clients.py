"""The NBD server against the clients people use: libnbd's, QEMU's and fio's."""

from __future__ import annotations

import asyncio
import filecmp
import json
import random
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vmferry.api import Access
from vmferry.export.daemon import ExportDaemon, ExportPaths
from vmferry.export.nbd import NbdServer
from vmferry_volumes.raw import RawDriver

pytestmark = pytest.mark.real

MIB = 1 << 20


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


async def run(program, *arguments, fails=False):
    """What the program printed; it must succeed, or fail if ``fails``."""
    process = await asyncio.create_subprocess_exec(
        program,
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode != 0) == fails, output
    return output


def make_sparse(path: Path, size: int, seed: int) -> None:
    """Random data in some places, holes in others."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, MIB):
            if chance.random() < 0.5:
                file.seek(start + 4096 * chance.randrange(128))
                file.write(chance.randbytes(4096 * chance.randrange(1, 128)))


@pytest.fixture
def place(tmp_path):
    """A server of real files: ``async with place("a.img") as url``."""

    @asynccontextmanager
    async def serving(name, *, read_only=False, tracked=False):
        driver, socket = RawDriver(), tmp_path / f"{name}.sock"
        access = Access.READ if read_only else Access.WRITE
        async with await driver.open(str(tmp_path / name), access) as volume:
            if tracked:
                server = ExportDaemon({"disk": volume})
                await server.start(ExportPaths(socket=socket, control=tmp_path / "ctl"))
            else:
                server = NbdServer({"disk": volume}, read_only=read_only)
                await server.start_unix(socket)
            try:
                yield f"nbd+unix:///disk?socket={socket}"
            finally:
                await server.close()

    return serving


@pytest.fixture
def image(tmp_path):
    def make(name="a.img", size=24 * MIB + 512, seed=1):
        make_sparse(tmp_path / name, size, seed)
        return tmp_path / name

    return make


@needs("nbdinfo")
async def test_nbdinfo_sees_what_is_there(place, image):
    path = image()
    async with place("a.img") as url:
        [export] = json.loads(await run("nbdinfo", "--json", url))["exports"]
        assert export["export-size"] == path.stat().st_size
        assert export["contexts"] == ["base:allocation"]
        assert export["can_multi_conn"]
        assert export["can_fua"]
        assert export["block_size_minimum"] == 512
        assert not export["is_read_only"]
        listed = json.loads(await run("nbdinfo", "--json", "--list", url))["exports"]
        assert [e["export-name"] for e in listed] == ["disk"]
        extents = json.loads(await run("nbdinfo", "--json", "--map", url))
        assert sum(e["length"] for e in extents) == path.stat().st_size
        assert {e["type"] for e in extents} == {0, 3}
        await run("nbdinfo", url.replace("/disk?", "/nobody?"), fails=True)
    async with place("a.img", read_only=True) as url:
        await run("nbdinfo", "--is", "read-only", url)


@needs("nbdcopy")
@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_both_ways(place, image, tmp_path, connections):
    path, copy, back = image(), tmp_path / "b.img", tmp_path / "back.img"
    copy.write_bytes(random.Random(7).randbytes(path.stat().st_size))
    back.touch()
    flags = [f"--connections={connections}", f"--threads={connections}", "--flush"]
    async with place("a.img") as source, place("b.img") as target:
        await run("nbdcopy", *flags, path, target)
        assert filecmp.cmp(path, copy, shallow=False)
        assert copy.stat().st_blocks * 512 < path.stat().st_size * 3 // 4
        await run("nbdcopy", *flags, source, back)
        assert filecmp.cmp(path, back, shallow=False)
        assert back.stat().st_blocks * 512 < path.stat().st_size * 3 // 4
        await run("nbdcopy", *flags, "--request-size=2097152", source, target)
    assert filecmp.cmp(path, copy, shallow=False)


@needs("nbdcopy")
async def test_nbdcopy_onto_an_empty_sparse_file(place, image, tmp_path):
    path, copy = image(), tmp_path / "b.img"
    with copy.open("wb") as file:
        file.truncate(path.stat().st_size)
    async with place("a.img") as source, place("b.img") as target:
        await run("nbdcopy", "--destination-is-zero", source, target)
    assert filecmp.cmp(path, copy, shallow=False)
    assert copy.stat().st_blocks * 512 < path.stat().st_size * 3 // 4


@needs("qemu-io")
async def test_qemu_io_patterns(place, image):
    image(size=16 * MIB)
    commands = [
        "write -P 0xa1 0 1M",
        "write -f -P 0xb2 1M 64k",
        "write -P 0xc3 5000k 512",
        "write -z 256k 128k",
        "write -z -u 512k 128k",
        "flush",
        "read -P 0xa1 0 256k",
        "read -P 0 256k 128k",
        "read -P 0xa1 384k 128k",
        "read -P 0 512k 128k",
        "read -P 0xa1 640k 384k",
        "read -P 0xb2 1M 64k",
        "read -P 0xc3 5000k 512",
        "discard 2M 1M",
        "aio_write -P 0xd4 3M 1M",
        "aio_write -P 0xe5 4M 512k",
        "aio_flush",
        "read -P 0xd4 3M 1M",
        "read -P 0xe5 4M 512k",
        "writev -P 0xf6 8M 64k 64k 64k",
        "readv -P 0xf6 8M 96k 96k",
        "write -P 0x17 100 100",
        "read -P 0x17 100 100",
        "read -P 0xa1 0 100",
        "read -P 0xa1 200 312",
    ]
    async with place("a.img", tracked=True) as url:
        arguments = [part for command in commands for part in ("-c", command)]
        output = await run("qemu-io", "-f", "raw", *arguments, url)
        assert "failed" not in output
        wrong = await run("qemu-io", "-f", "raw", "-c", "read -P 0x99 0 4k", url, fails=True)
        assert "Pattern verification failed" in wrong


@needs("qemu-io")
async def test_qemu_io_cannot_write_a_read_only_export(place, image):
    path = image(size=MIB)
    before = path.read_bytes()
    async with place("a.img", read_only=True) as url:
        await run("qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", url, fails=True)
        await run("qemu-io", "-r", "-f", "raw", "-c", "read 0 1M", "-c", "flush", url)
    assert path.read_bytes() == before


@needs("qemu-img")
async def test_qemu_img_map_and_convert(place, image, tmp_path):
    path, out = image(size=24 * MIB), tmp_path / "out.img"
    async with place("a.img") as url:
        over_nbd = json.loads(await run("qemu-img", "map", "-f", "raw", "--output=json", url))
        direct = json.loads(await run("qemu-img", "map", "-f", "raw", "--output=json", path, "-U"))
        shown = [[(e["start"], e["length"], e["zero"]) for e in m] for m in (over_nbd, direct)]
        assert shown[0] == shown[1]
        await run("qemu-img", "convert", "-f", "raw", "-O", "raw", url, out)
    assert filecmp.cmp(path, out, shallow=False)
    copy = image("b.img", size=24 * MIB, seed=2)
    async with place("b.img") as url:
        await run("qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", path, url)
        await run("qemu-img", "compare", "-f", "raw", "-F", "raw", out, url)
    assert filecmp.cmp(path, copy, shallow=False)


@needs("fio")
@pytest.mark.parametrize("tracked", [False, True])
async def test_fio_verifies_what_several_jobs_wrote(place, image, tracked):
    image(size=32 * MIB)
    async with place("a.img", tracked=tracked) as url:
        output = await run(
            "fio",
            "--ioengine=nbd",
            f"--uri={url}",
            "--rw=randwrite",
            "--bsrange=512-256k",
            "--bs_unaligned=0",
            "--blockalign=512",
            "--iodepth=16",
            "--size=8m",
            "--offset_increment=8m",
            "--numjobs=4",
            "--thread",
            "--fsync=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",  # else it leaves files where it was started
            "--group_reporting",
            "--name=verify",
        )
    assert "err= 0" in output
