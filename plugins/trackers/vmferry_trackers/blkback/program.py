"""The eBPF programs that mark what is written, as instructions for the kernel at hand.

Each is run by the kernel at a tracepoint with typed pointers, and reads the request's own fields:
the operation is a number there, and needs no guessing from letters. The programs, as what they
declare to the kernel says, may also be used under the GPL v2 or the BSD licence.

Layout of a generation's map, in words of 8 bytes:

====================  ==========================================================================
word                  content
====================  ==========================================================================
0                     not 0: track was lost, everything is dirty
1                     number of long ranges, also of those for which there was no room
2, 4, ...             first block and number of blocks of a long range
``SEEN``              sectors of all that was seen to complete on the whole device
``HEADER`` and on     one bit for each block
====================  ==========================================================================
"""

from __future__ import annotations

from typing import NamedTuple

from vmferry.units import SECTOR
from vmferry_trackers.blkback.device import BlockDevice
from vmferry_trackers.ebpf.assembler import Assembler, Helper, Reg
from vmferry_trackers.ebpf.btf import Btf, BtfError

__all__ = [
    "HEADER",
    "IN_FLIGHT_BYTES",
    "LONG_RANGES",
    "LOST",
    "RANGES",
    "SEEN",
    "Maps",
    "Program",
    "make",
]

LOST, RANGES, HEADER = 0, 1, 2048
SEEN = HEADER - 1
LONG_RANGES = (SEEN - 2) // 2
"""How many fit between two harvests; one more means that everything is dirty."""
IN_FLIGHT_BYTES = 16
"""Of an entry of the table of bios in flight: first sector, bytes."""

_WORDS = 1024
"""Most words of the bitmap that a program sets by itself; a longer range goes on the list. The
verifier follows every turn of the loop, and gives up at some thousands."""
_DRIVER_PRIVATE = 34  # REQ_OP_DRV_IN; from here on requests have no place on the disk
_OPERATION, _WRITES = 0xFF, 1  # REQ_OP_MASK; odd operations change the disk (op_is_write)
_KEY, _RANGE_KEY, _VALUE, _POINTER = -8, -16, -32, -40  # places on the stack
_ZERO, _ONE, _TWO, _THREE, _FOUR, _FIVE, _TURN, _FIRST, _LAST, _MAP, _STACK = Reg


class Maps(NamedTuple):
    """Descriptors of the maps that the programs use.

    Attributes:
        current: array of maps with the one that is marked now.
        in_flight: table of bios in flight; 0 where there is none.

    """

    current: int
    in_flight: int


class Program(NamedTuple):
    """A program that was not loaded.

    Attributes:
        tracepoint: where it belongs.
        type_id: of the tracepoint.
        code: instructions.

    """

    tracepoint: str
    type_id: int
    code: bytes


def make(btf: Btf, device: BlockDevice, block_size: int, maps: Maps) -> list[Program]:
    """The programs for a device, in the order in which to attach them.

    Raises:
        BtfError: the kernel lacks a tracepoint or field.

    """
    if device.kind.requests:
        return [_Requests(btf, device, block_size, maps).program()]
    return [
        # Completions first: one whose beginning was not seen makes everything dirty.
        _Completions(btf, device, block_size, maps).program(),
        _Beginnings(btf, device, block_size, maps).program(),
    ]


class _Marking:
    """What the programs have in common."""

    tracepoint: str
    subject: str

    def __init__(self, btf: Btf, device: BlockDevice, block_size: int, maps: Maps) -> None:
        self.btf, self.device, self.maps = btf, device, maps
        self.shift = (block_size // SECTOR).bit_length() - 1
        self.asm = Assembler()

    def program(self) -> Program:
        """The finished program."""
        found = self.btf.tracepoint(self.tracepoint)
        if self.subject not in found.parameters:
            raise BtfError(f"the tracepoint {self.tracepoint} does not have a {self.subject}")
        self.asm.load(_TWO, _ONE, 8 * found.parameters.index(self.subject), 8)
        self.asm.load(_THREE, _ONE, 8 * (len(found.parameters) - 1), 8)
        self.body()
        self.asm.label("out")
        self.asm.set(_ZERO, 0)
        self.asm.exit()
        return Program(self.tracepoint, found.type_id, self.asm.assemble())

    def body(self) -> None:
        """R2 is the request or bio, R3 the tracepoint's last argument."""
        raise NotImplementedError

    def only_writes(self, flags: str) -> None:
        """Leave unless it changes the disk; R4 becomes the operation."""
        (offset,) = self.btf.walk(self.subject, flags)
        self.asm.load(_FOUR, _TWO, offset, 4)
        self.asm.alu(_FOUR, "&", _OPERATION)
        self.asm.alu(_FIVE, "=", _FOUR)
        self.asm.alu(_FIVE, "&", _WRITES)
        self.asm.jump_if(_FIVE, "==", 0, "out")

    def only_device(self, *ways: str) -> None:
        """Leave unless it is for the whole device; ``ways`` lead to its ``gendisk``."""
        for field, wanted in ("major", self.device.major), ("first_minor", self.device.minor):
            offsets = self._first_way([f"{way}->{field}" for way in ways])
            self.asm.set(_ONE, _TWO)
            for offset in offsets[:-1]:
                self.asm.load(_ONE, _ONE, offset, 8)
            self.asm.load(_ONE, _ONE, offsets[-1], 4)
            self.asm.jump_if(_ONE, "!=", wanted, "out")

    def _first_way(self, ways: list[str]) -> tuple[int, ...]:
        for way in ways[:-1]:
            try:
                return self.btf.walk(self.subject, way)
            except BtfError:
                continue
        return self.btf.walk(self.subject, ways[-1])

    def mark(self, done: str) -> None:
        """Mark R8 bytes, not 0, from sector R7 on; go on at ``done``."""
        asm = self.asm
        asm.alu(_LAST, "+", SECTOR - 1)
        asm.alu(_LAST, ">>", 9)
        self._open_map(done)
        self._count(done)
        asm.alu(_LAST, "+", _FIRST)  # end
        self._clip(done)
        asm.alu(_LAST, "-", 1)
        asm.alu(_FIRST, ">>", self.shift)
        asm.alu(_LAST, ">>", self.shift)
        asm.set(_FOUR, _LAST)
        asm.alu(_FOUR, ">>", 6)
        asm.set(_FIVE, _FIRST)
        asm.alu(_FIVE, ">>", 6)
        asm.alu(_FOUR, "-", _FIVE)
        asm.jump_if(_FOUR, ">=", _WORDS, "long")
        self._set_bits(done)
        self._note_range(done)
        self.lost(done)

    def _count(self, done: str) -> None:
        """Add to what was seen, to be compared with the kernel's own statistics."""
        self.asm.store(_STACK, _KEY, SEEN, 4)
        self._word(_KEY, done)
        self.asm.set(_TURN, _LAST)
        self.asm.atomic_add(_ZERO, 0, _TURN)

    def _clip(self, done: str) -> None:
        """Make the range relative to the part of the device that is the disk's."""
        asm, start, stop = self.asm, self.device.start, self.device.start + self.device.sectors
        asm.set(_ONE, start)
        asm.set(_TWO, stop)
        asm.jump_if(_LAST, "<=", _ONE, done)
        asm.jump_if(_FIRST, ">=", _TWO, done)
        asm.jump_if(_FIRST, ">=", _ONE, "begins inside")
        asm.set(_FIRST, _ONE)
        asm.label("begins inside")
        asm.jump_if(_LAST, "<=", _TWO, "ends inside")
        asm.set(_LAST, _TWO)
        asm.label("ends inside")
        asm.alu(_FIRST, "-", _ONE)
        asm.alu(_LAST, "-", _ONE)

    def _open_map(self, done: str) -> None:
        """R9 becomes the map of the current generation."""
        self.asm.store(_STACK, _KEY, 0, 4)
        self.asm.set_map(_ONE, self.maps.current)
        self.call(Helper.MAP_LOOKUP, _KEY)
        self.asm.jump_if(_ZERO, "==", 0, done)
        self.asm.set(_MAP, _ZERO)

    def call(self, helper: Helper, *places: int) -> None:
        """Call with places on the stack as the arguments after the first."""
        for register, place in zip((_TWO, _THREE), places, strict=False):
            self.asm.set(register, _STACK)
            self.asm.alu(register, "+", place)
        self.asm.call(helper)

    def _word(self, key: int, missing: str) -> None:
        """R0 becomes the address of the word whose number is on the stack at ``key``."""
        self.asm.set(_ONE, _MAP)
        self.call(Helper.MAP_LOOKUP, key)
        self.asm.jump_if(_ZERO, "==", 0, missing)

    def _set_bits(self, done: str) -> None:
        asm = self.asm
        asm.set(_TURN, 0)
        asm.label("word")
        asm.set(_ONE, _FIRST)
        asm.alu(_ONE, ">>", 6)
        asm.alu(_ONE, "+", HEADER)
        asm.store(_STACK, _KEY, _ONE, 4)
        self._word(_KEY, "lost")
        self._mask()
        asm.load(_TWO, _ZERO, 0, 8)
        asm.alu(_TWO, "&", _ONE)
        asm.jump_if(_TWO, "==", _ONE, "marked before")  # an atomic operation costs many loads
        asm.atomic_or(_ZERO, 0, _ONE)
        asm.label("marked before")
        asm.alu(_FIRST, "|", 63)
        asm.alu(_FIRST, "+", 1)
        asm.jump_if(_FIRST, ">", _LAST, done)
        asm.alu(_TURN, "+", 1)
        asm.jump_if(_TURN, "<", _WORDS, "word")
        asm.jump("lost")

    def _mask(self) -> None:
        """R1 becomes the bits of the first block's word from it to the last block.

        Shifts by a register take its lowest six bits, the place within the word.
        """
        asm = self.asm
        asm.set(_ONE, -1)
        asm.alu(_ONE, "<<", _FIRST)
        asm.set(_THREE, _FIRST)
        asm.alu(_THREE, "|", 63)
        asm.jump_if(_THREE, "<", _LAST, "whole")
        asm.set(_TWO, 63)
        asm.alu(_TWO, "-", _LAST)
        asm.set(_THREE, -1)
        asm.alu(_THREE, ">>", _TWO)
        asm.alu(_ONE, "&", _THREE)
        asm.label("whole")

    def _note_range(self, done: str) -> None:
        """Put a range that is too long for the loop on the list."""
        asm = self.asm
        asm.label("long")
        asm.store(_STACK, _KEY, RANGES, 4)
        self._word(_KEY, done)
        asm.set(_TURN, 1)
        asm.atomic_add(_ZERO, 0, _TURN)
        asm.jump_if(_TURN, ">=", LONG_RANGES, "lost")
        asm.alu(_TURN, "<<", 1)
        asm.alu(_TURN, "+", 2)
        asm.alu(_LAST, "-", _FIRST)
        asm.alu(_LAST, "+", 1)
        for value in _FIRST, _LAST:
            asm.store(_STACK, _RANGE_KEY, _TURN, 4)
            self._word(_RANGE_KEY, "lost")
            asm.store(_ZERO, 0, value, 8)
            asm.alu(_TURN, "+", 1)
        asm.jump(done)

    def lost(self, done: str) -> None:
        """Everything is dirty; R9 is the map."""
        self.asm.label("lost")
        self.asm.store(_STACK, _KEY, LOST, 4)
        self._word(_KEY, done)
        self.asm.store(_ZERO, 0, 1, 8)
        self.asm.jump(done)


class _Requests(_Marking):
    """Marks a part of a request when it completes, before whoever waits for it is told."""

    tracepoint, subject = "block_rq_complete", "request"

    def body(self) -> None:
        asm = self.asm
        asm.set(_LAST, _THREE)  # nr_bytes
        self.only_writes("cmd_flags")
        self.only_device("q->disk", "rq_disk")
        asm.jump_if(_FOUR, ">=", _DRIVER_PRIVATE, "unknown place")
        asm.alu(_LAST, "=", _LAST, 4)
        asm.jump_if(_LAST, "==", 0, "out")
        asm.load(_FIRST, _TWO, self.btf.walk("request", "__sector")[0], 8)
        self.mark("out")
        asm.label("unknown place")
        self._open_map("out")
        asm.jump("lost")


class _Beginnings(_Marking):
    """Notes the place of a bio when it is queued: when it completes, it has forgotten."""

    tracepoint, subject = "block_bio_queue", "bio"

    def body(self) -> None:
        asm, btf = self.asm, self.btf
        self.only_writes("bi_opf")
        self.only_device("bi_bdev->bd_disk", "bi_disk")
        asm.store(_STACK, _POINTER, _TWO, 8)
        asm.load(_ONE, _TWO, btf.walk("bio", "bi_iter.bi_sector")[0], 8)
        asm.store(_STACK, _VALUE, _ONE, 8)
        asm.load(_ONE, _TWO, btf.walk("bio", "bi_iter.bi_size")[0], 4)
        asm.store(_STACK, _VALUE + 8, _ONE, 8)
        asm.set(_FOUR, 0)  # BPF_ANY
        asm.set_map(_ONE, self.maps.in_flight)
        self.call(Helper.MAP_UPDATE, _POINTER, _VALUE)
        # If there was no room, the completion finds nothing, and everything is dirty then.


class _Completions(_Marking):
    """Marks a bio when it has completed, before whoever waits for it is told."""

    tracepoint, subject = "block_bio_complete", "bio"

    def body(self) -> None:
        asm = self.asm
        self.only_writes("bi_opf")
        self.only_device("bi_bdev->bd_disk", "bi_disk")
        asm.store(_STACK, _POINTER, _TWO, 8)
        asm.set_map(_ONE, self.maps.in_flight)
        self.call(Helper.MAP_LOOKUP, _POINTER)
        asm.jump_if(_ZERO, "==", 0, "unknown place")
        asm.load(_FIRST, _ZERO, 0, 8)
        asm.load(_LAST, _ZERO, 8, 8)
        asm.jump_if(_LAST, "==", 0, "ended")  # a flush
        self.mark("ended")
        asm.label("unknown place")
        self._open_map("out")
        asm.jump("lost")
        asm.label("ended")  # after it was marked
        asm.set_map(_ONE, self.maps.in_flight)
        self.call(Helper.MAP_DELETE, _POINTER)
