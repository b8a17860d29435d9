"""What is to be sent again after a lost connection: all that may be missing, and little else."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest

from vmferry.api.guest import Disk
from vmferry.api.volume import Extent, ExtentKind
from vmferry.dirtymap import DirtyMap
from vmferry.engine.disks import SourceDisk, dirty_pieces, rest_pieces, whole_disk
from vmferry.engine.ledger import Ledger
from vmferry.engine.sender import Piece
from vmferry.errors import TrackerError

KIB = 1024
BLOCK = 4 * KIB
SIZE = 16 * BLOCK


class FakeVolume:
    """Data, but for a hole in its second quarter."""

    async def extents(self, offset, length):
        bounds = (0, 4 * BLOCK, 8 * BLOCK, SIZE)
        for start, stop in pairwise(bounds):
            begin, end = max(start, offset), min(stop, offset + length)
            if begin < end:
                kind = ExtentKind.HOLE if start == 4 * BLOCK else ExtentKind.DATA
                yield Extent(begin, end - begin, kind)


def a_disk(tracker=None, index=0):
    described = Disk(name=f"d{index}", size=SIZE, volume="fake", location="x", tracker="fake")
    return SourceDisk(index, described, FakeVolume(), tracker, BLOCK)


def dirty(disk):
    return list(disk.todo.runs())


async def taken(work, count):
    """The first pieces of ``work``, which is closed then."""
    found = []
    async with aclosing(work):
        async for piece in work:
            found.append(piece)
            if len(found) == count:
                break
    return found


async def test_the_rest_of_a_full_copy_that_is_broken_off_is_to_be_done():
    disk = a_disk()
    disk.blank = True
    skipped = []
    (first,) = await taken(whole_disk(disk, 2 * BLOCK, skipped.append), 1)
    assert first == Piece(0, 0, 2 * BLOCK)
    assert dirty(disk) == [(2 * BLOCK, SIZE - 2 * BLOCK)]
    await taken(whole_disk(disk, 2 * BLOCK, skipped.append), 3)
    assert skipped == [4 * BLOCK]


@pytest.mark.parametrize("pieces", [dirty_pieces, rest_pieces])
async def test_the_rest_of_a_round_that_is_broken_off_is_to_be_done_on_all_disks(pieces):
    disks = [a_disk(), a_disk(index=1)]
    for disk in disks:
        disk.todo.mark(0, 2 * BLOCK)
        disk.todo.mark(12 * BLOCK, BLOCK)
    got = await taken(pieces(disks, BLOCK), 1)
    left = sum(disk.todo.dirty_bytes() for disk in disks)
    assert left == 6 * BLOCK - got[0].length
    assert dirty(disks[1]) == [(0, 2 * BLOCK), (12 * BLOCK, BLOCK)]


@pytest.mark.parametrize("pieces", [dirty_pieces, rest_pieces])
async def test_a_round_that_ends_leaves_nothing(pieces):
    disk = a_disk()
    disk.todo.mark_all()
    got = await taken(pieces([disk], 4 * BLOCK), 100)
    assert sum(piece.length for piece in got) == SIZE
    assert dirty(disk) == []


async def test_holes_of_the_rest_are_sent_unread_though_the_disk_was_blank():
    disk = a_disk()
    disk.blank = True
    disk.todo.mark(2 * BLOCK, 8 * BLOCK)
    got = await taken(rest_pieces([disk], 64 * BLOCK), 100)
    assert got == [
        Piece(0, 2 * BLOCK, 2 * BLOCK),
        Piece(0, 4 * BLOCK, 4 * BLOCK, zero=True),
        Piece(0, 8 * BLOCK, 2 * BLOCK),
    ]


async def test_a_piece_is_on_record_until_a_barrier_behind_it_was_answered():
    disk, ledger = a_disk(), Ledger()
    disk.todo.mark_all()
    pieces = await taken(ledger.handing(dirty_pieces([disk], 4 * BLOCK)), 3)
    assert dirty(disk) == [(12 * BLOCK, 4 * BLOCK)]
    ledger.gone(pieces[0])
    ledger.mark()
    ledger.gone(pieces[1])
    ledger.reached()
    ledger.put_back([disk])
    assert dirty(disk) == [(4 * BLOCK, SIZE - 4 * BLOCK)]


async def test_a_barrier_that_was_not_answered_says_nothing():
    disk, ledger = a_disk(), Ledger()
    disk.todo.mark(0, BLOCK)
    (piece,) = await taken(ledger.handing(dirty_pieces([disk], BLOCK)), 1)
    ledger.gone(piece)
    ledger.mark()
    ledger.put_back([disk])
    assert dirty(disk) == [(0, BLOCK)]
    disk.todo.clear_all()
    ledger.put_back([disk])
    assert dirty(disk) == []


class SlowTracker:
    """Forgets at once and answers later."""

    def __init__(self):
        self.marked = DirtyMap(SIZE, BLOCK)
        self.answer = asyncio.Event()
        self.error = None

    async def harvest(self):
        found = self.marked.take()
        await self.answer.wait()
        if self.error:
            raise self.error
        return found


async def cancelled_harvest(tracker):
    disk = a_disk(tracker)
    tracker.marked.mark(0, BLOCK)
    harvest = asyncio.create_task(disk.harvest())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    harvest.cancel()
    await asyncio.wait([harvest])
    assert harvest.cancelled()
    return disk


async def test_a_harvest_that_is_cancelled_is_not_lost():
    tracker = SlowTracker()
    disk = await cancelled_harvest(tracker)
    assert dirty(disk) == []
    tracker.answer.set()
    await disk.settle()
    assert dirty(disk) == [(0, BLOCK)]


async def test_a_harvest_that_fails_when_it_was_cancelled_is_told():
    tracker = SlowTracker()
    tracker.error = TrackerError("lost track")
    disk = await cancelled_harvest(tracker)
    tracker.answer.set()
    with pytest.raises(TrackerError):
        await disk.settle()
