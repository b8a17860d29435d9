"""Reads and writes of raw files: short ones, partly cached ones, any buffer."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from vmferry.api.volume import Access, Geometry
from vmferry.units import MIB
from vmferry_volumes import linux, raw_volume, threads, transfer
from vmferry_volumes.raw import RawDriver, RawOptions


async def test_file_that_became_shorter(disk: str) -> None:
    async with await RawDriver().open(disk, Access.READ) as volume:
        os.truncate(disk, 4096)
        with pytest.raises(OSError, match="became shorter"):
            await volume.read_into(0, memoryview(bytearray(8192)))


@pytest.mark.parametrize("name", ["preadv", "pwrite"])
def test_short_transfers_are_continued(
    disk: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = {"preadv": os.preadv, "pwrite": os.pwrite}[name]

    def short(fd: int, buffer: object, offset: int) -> int:
        view = buffer[0] if isinstance(buffer, list) else buffer
        return whole(fd, [view[:700]] if isinstance(buffer, list) else view[:700], offset)

    monkeypatch.setattr(transfer.os, name, short)
    data, back = os.urandom(4096), bytearray(4096)
    fd = os.open(disk, os.O_RDWR)
    try:
        transfer.write_full(fd, memoryview(data), 512)
        transfer.read_full(fd, memoryview(back), 512)
    finally:
        os.close(fd)
    assert back == data == Path(disk).read_bytes()[512 : 512 + 4096]


async def test_busy_device_is_tried_again(disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.EBUSY, 0]

    def punch(*_: object) -> None:
        number = answers.pop(0)
        if number:
            raise OSError(number, "busy")

    flushed: list[int] = []
    async with await RawDriver().open(disk, Access.WRITE) as volume:
        monkeypatch.setattr(linux, "punch_hole", punch)
        monkeypatch.setattr(raw_volume.os, "fdatasync", flushed.append)
        await volume.write_zeroes(0, MIB)
    assert not answers
    assert len(flushed) == 1


async def test_file_system_without_nowait_is_read_in_threads(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def cannot(*_: object) -> int:
        asked.append(1)
        raise OSError(errno.EOPNOTSUPP, "no RWF_NOWAIT")

    monkeypatch.setattr(raw_volume, "read_cached", cannot)
    async with await RawDriver().open(disk, Access.READ) as volume:
        for _ in range(3):
            buffer = bytearray(b"x" * 4096)
            await volume.read_into(0, memoryview(buffer))
            assert buffer == bytes(4096)
    assert len(asked) == 1


async def test_partly_cached_read_is_completed(disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view[:100]], offset)

    Path(disk).write_bytes(bytes(range(256)) * 4096)
    monkeypatch.setattr(raw_volume, "read_cached", some)
    async with await RawDriver().open(disk, Access.READ) as volume:
        buffer = bytearray(4096)
        await volume.read_into(512, memoryview(buffer))
    assert buffer == bytes(range(256)) * 16


async def test_one_failed_write_of_a_batch_fails_alone(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(fd: int, view: memoryview, offset: int) -> None:
        if offset == 4096:
            raise OSError(errno.EIO, "bad sector")
        transfer.write_full(fd, view, offset)

    monkeypatch.setattr(threads, "write_full", write)
    async with await RawDriver().open(disk, Access.WRITE) as volume:
        data = memoryview(b"x" * 4096)
        results = await asyncio.gather(
            *(volume.write(place, data) for place in range(0, MIB, 4096)), return_exceptions=True
        )
    failed = [number for number, result in enumerate(results) if result is not None]
    assert failed == [1]
    assert Path(disk).read_bytes().count(b"x") == MIB - 4096


async def test_views_of_other_shapes(disk: str) -> None:
    async with await RawDriver().open(disk, Access.WRITE) as volume:
        words = memoryview(bytearray(b"abcdefgh" * 64)).cast("Q")
        await volume.write(0, words)
        back = memoryview(bytearray(512)).cast("I")
        await volume.read_into(0, back)
    assert back.tobytes() == words.tobytes()


@pytest.mark.parametrize("shift", [0, 1, 16])
async def test_direct_takes_memory_of_any_alignment(path: str, shift: int) -> None:
    size = 2 * MIB + 4096
    data = os.urandom(size)
    driver = RawDriver(RawOptions(direct="on", sector_size=4096))
    async with await driver.create(path, Geometry(size, 4096)) as volume:
        await volume.write(0, memoryview(bytes(shift) + data)[shift:])
        buffer = bytearray(size + shift)
        await volume.read_into(0, memoryview(buffer)[shift:])
    assert buffer[shift:] == data == Path(path).read_bytes()


@pytest.mark.parametrize("length", [1, 4096, (256 << 10) - 1, 256 << 10, (1 << 20) + 512])
def test_all_of_it_is_written_in_its_place(tmp_path: Path, length: int) -> None:
    data = os.urandom(length)
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    try:
        transfer.write_out(fd, memoryview(data), 4096)
        assert os.pread(fd, length + 1, 4096) == data
        assert os.fstat(fd).st_size == 4096 + length
    finally:
        os.close(fd)


def test_the_range_that_was_written_begins_to_be_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    monkeypatch.setattr(transfer, "begin_writeback", lambda *given: begun.append(given))
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    try:
        transfer.write_out(fd, memoryview(bytes(1 << 20)), 8192)
        assert begun == [(fd, 8192, 1 << 20)]
    finally:
        os.close(fd)


def test_what_cannot_be_written_out_early_is_no_error() -> None:
    read, write = os.pipe()
    try:
        linux.begin_writeback(write, 0, 4096)
    finally:
        os.close(read)
        os.close(write)
