"""The eBPF programs, run by an interpreter against a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from btf_maker import BtfMaker, small_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import Array, ArrayOfMaps, Machine, Table

from vmferry_trackers.blkback.device import BlockDevice, Kind
from vmferry_trackers.blkback.program import HEADER, LONG_RANGES, LOST, RANGES, SEEN, Maps, make
from vmferry_trackers.ebpf.btf import Btf, BtfError

BTF = Btf(small_kernel())
CURRENT, IN_FLIGHT = 10, 11
MAJOR, MINOR = 7, 3
READ, WRITE, FLUSH, DISCARD, ZEROES, DRIVER_IN, DRIVER_OUT = 0, 1, 2, 3, 9, 34, 35
PREFLUSH, SYNC = 1 << 18, 1 << 11
REQUEST, QUEUE, DISK, BIO, PART = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


class World:
    """A device, its programs and their maps."""

    def __init__(self, sectors, block_size=4096, *, start=0, requests=True, room=1 << 30):
        folder = Path("/sys/block/loop3")
        kind = Kind(requests=requests)
        device = BlockDevice("loop3", MAJOR, MINOR, start, sectors, kind, folder, folder)
        self.blocks = -(-sectors * 512 // block_size)
        self.map = Array(HEADER + -(-self.blocks // 64))
        self.flying = Table(room)
        self.outer = ArrayOfMaps(self.map)
        self.machine = Machine({CURRENT: self.outer, IN_FLIGHT: self.flying})
        made = make(BTF, device, block_size, Maps(CURRENT, IN_FLIGHT))
        self.programs = [(program.tracepoint, program.code) for program in made]

    def fire(self, tracepoint, arguments, skip=()):
        """What the kernel does at a tracepoint; ``skip``: copies that are at work already."""
        codes = [code for name, code in self.programs if name == tracepoint]
        for number, code in enumerate(codes):
            if number not in skip:
                self.machine.run(code, arguments)

    def complete(self, sector, count, *, flags=WRITE, disk=(MAJOR, MINOR), skip=()):
        """``count`` bytes of a request from ``sector`` on have completed."""
        self.machine.memory = {
            REQUEST + 8: QUEUE,
            QUEUE + 40: DISK,
            DISK + 4: disk[0],
            DISK + 12: disk[1],
            REQUEST + 20: flags,
            REQUEST + 32: sector,
        }
        self.fire("block_rq_complete", [REQUEST, 0, count], skip)

    def bio(self, event, address, sector, count, *, flags=WRITE, disk=(MAJOR, MINOR), skip=()):
        self.machine.memory = {
            address + 8: PART,
            PART + 24: DISK,
            DISK + 4: disk[0],
            DISK + 12: disk[1],
            address + 16: flags,
            address + 24: sector,
            address + 32: count,
        }
        arguments = [address] if event == "block_bio_queue" else [QUEUE, address]
        self.fire(event, arguments, skip)

    def queue(self, address, sector, count, **more):
        self.bio("block_bio_queue", address, sector, count, **more)

    def end(self, address, sector=0, count=0, **more):
        self.bio("block_bio_complete", address, sector, count, **more)

    @property
    def lost(self):
        return bool(self.map.words[LOST])

    def ranges(self):
        words = self.map.words
        return {(words[2 + 2 * n], words[3 + 2 * n]) for n in range(words[RANGES])}

    def marked(self):
        found = {
            64 * number + bit
            for number, word in enumerate(self.map.words[HEADER:])
            if word
            for bit in range(64)
            if word >> bit & 1
        }
        return found | {block for first, n in self.ranges() for block in range(first, first + n)}


def touched(sector, count, block_size, *, start=0, sectors):
    """Blocks of the disk that bytes of the whole device touch."""
    begin = max(sector * 512, start * 512) - start * 512
    stop = min(sector * 512 + count, (start + sectors) * 512) - start * 512
    return set(range(begin // block_size, -(-stop // block_size))) if stop > begin else set()


SECTORS = 4099
spots = st.tuples(st.integers(0, SECTORS + 200), st.integers(0, 4000))


@settings(deadline=None, max_examples=150)
@given(
    spots=st.lists(spots, max_size=6),
    block_size=st.sampled_from([512, 4096, 65536]),
    start=st.sampled_from([0, 1, 100]),
)
def test_marks_the_blocks_of_a_request_and_no_other(spots, block_size, start):
    world = World(SECTORS, block_size, start=start)
    wanted = set()
    for sector, count in spots:
        world.complete(sector, 512 * count)
        wanted |= touched(sector, 512 * count, block_size, start=start, sectors=SECTORS)
    assert world.marked() == wanted
    assert not world.lost


@pytest.mark.parametrize("flags", [WRITE, DISCARD, ZEROES, WRITE | SYNC | PREFLUSH])
def test_all_that_changes_a_disk_counts(flags):
    world = World(800)
    world.complete(8, 4096, flags=flags)
    assert world.marked() == {1}


@pytest.mark.parametrize("flags", [READ, FLUSH, READ | SYNC, DRIVER_IN])
def test_reads_and_flushes_do_not(flags):
    world = World(800)
    world.complete(8, 4096, flags=flags)
    assert not world.marked()
    assert not world.lost


@pytest.mark.parametrize("disk", [(MAJOR, MINOR + 1), (MAJOR + 1, MINOR)])
def test_other_devices_are_left_alone(disk):
    world = World(800)
    world.complete(8, 4096, disk=disk)
    assert not world.marked()


def test_command_of_the_drivers_own_loses_track():
    world = World(800)
    world.complete((1 << 64) - 1, 512, flags=DRIVER_OUT)
    assert world.lost


def test_last_part_of_the_disk_is_marked():
    world = World(801)
    world.complete(800, 512)
    assert world.marked() == {100}


def test_long_range_goes_on_the_list():
    blocks = 70_000
    world = World(8 * blocks)
    world.complete(8, 4096 * (blocks - 2), flags=DISCARD)
    assert world.ranges() == {(1, blocks - 2)}
    assert not any(world.map.words[HEADER:])
    assert not world.lost


def test_range_that_just_fits_is_set_bit_by_bit():
    blocks = 64 * 1024
    world = World(8 * (blocks + 64))
    world.complete(0, 4096 * blocks)
    assert not world.ranges()
    assert world.marked() == set(range(blocks))


def test_full_list_loses_track():
    blocks = 70_000
    world = World(8 * blocks)
    for _ in range(LONG_RANGES):
        world.complete(0, 4096 * blocks, flags=DISCARD)
    assert not world.lost
    world.complete(0, 4096 * blocks, flags=DISCARD)
    assert world.lost


def test_marks_go_to_the_map_that_is_current():
    world = World(800)
    retired, world.outer.inner = world.map, Array(len(world.map.words))
    world.complete(8, 4096)
    assert not any(retired.words)
    assert world.outer.inner.words[SEEN] == 8
    assert world.outer.inner.words[HEADER] == 2


def bios(**more):
    return World(8000, requests=False, **more)


def test_bio_is_marked_when_it_completes_where_it_began():
    world = bios()
    world.queue(BIO, 16, 8192)
    assert not world.marked()
    world.end(BIO, sector=32, count=0)  # its own fields have moved on
    assert world.marked() == {2, 3}
    assert not world.flying.entries


def test_bio_is_still_in_flight_while_it_is_marked():
    """Whoever finds nothing in flight may harvest: the mark must be there by then."""
    world = bios()
    world.queue(BIO, 16, 4096)
    seen = []
    world.outer.lookup = lambda key: (
        seen.append(dict(world.flying.entries)) or ("map", world.map, 0)
    )
    world.end(BIO)
    assert [len(each) for each in seen] == [1]


def test_bio_whose_beginning_was_not_seen_loses_track():
    world = bios()
    world.end(BIO, sector=16, count=0)
    assert world.lost


def test_bio_for_which_there_was_no_room_loses_track():
    world = bios(room=1)
    world.queue(BIO, 16, 4096)
    world.queue(BIO + 256, 32, 4096)
    assert not world.lost
    world.end(BIO + 256)
    assert world.lost


def test_flush_without_data_marks_nothing():
    world = bios()
    world.queue(BIO, 0, 0, flags=WRITE | PREFLUSH)
    world.end(BIO, flags=WRITE)
    assert not world.marked()
    assert not world.lost
    assert not world.flying.entries


@pytest.mark.parametrize("more", [{"flags": READ}, {"disk": (MAJOR, 9)}])
def test_other_bios_are_left_alone(more):
    world = bios()
    world.queue(BIO, 16, 4096, **more)
    world.end(BIO, 24, 0, **more)
    assert not world.marked()
    assert not world.lost
    assert not world.flying.entries


def test_completions_are_attached_before_beginnings():
    names = [name for name, _ in bios().programs]
    assert names == ["block_bio_complete", "block_bio_queue"]


def test_kernel_without_the_tracepoint_is_an_error():
    folder = Path("/sys/block/loop3")
    device = BlockDevice("loop3", MAJOR, MINOR, 0, 8, Kind(requests=True), folder, folder)
    with pytest.raises(BtfError, match="block_rq_complete"):
        make(Btf(BtfMaker().bytes() + b""), device, 4096, Maps(1, 0))
