"""The guest's program: its image, its parameters, and the operations that follow from them.

``guest.asm`` is the source of ``guest.bin`` and says what each field means.
"""

from __future__ import annotations

import struct
from importlib import resources
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "FIRST_BLOCK",
    "SECTORS",
    "SIZE",
    "STATE",
    "Operations",
    "Program",
    "State",
    "image",
    "operations",
]

SIZE = 4096
"""Bytes of the program on the disk, and in memory."""
STATE = (0x5000, 40)
"""Address and size of what the guest's memory says of it."""
SECTORS = 8
"""Sectors of a block."""
FIRST_BLOCK = 2
"""The first block that is written by operations: before it are program and number of boots."""
TICKS = 1193182
"""Frequency of the timer whose divisor gives the tick, Hz."""
_PARAMETERS = struct.Struct("<4sIIIIBBBBIHHIIIII")
_STATE = struct.Struct("<4sIIIIIIIII")
_MAGIC, _AT = b"VFG1", 4
_FACTOR, _TERM, _PER_BOOT = 1664525, 1013904223, 0x9E3779B9
Numbers = npt.NDArray[np.int64]


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of the guest; see ``guest.asm``.

    Attributes:
        seed: start of the random numbers.
        sectors: of each disk.
        blocks: 4 KiB blocks of each disk that are used, from ``FIRST_BLOCK`` on.
        filled: sectors below this hold their stamp of operation 0 at the start.
        disks: how many.
        reads: of 256 operations so many read.
        parts: of 256 operations so many concern a part of a block.
        full_speed: operations without a pause.
        rate: operations per 65536 ticks.
        divisor: of the tick.
        touched: pages per tick, or per operation at full speed.
        touch: bytes of memory that are touched: first and end.
        noise: end of the memory after that, which holds numbers.
        table: where the table is in memory.

    """

    sectors: int
    blocks: int
    seed: int = 1
    filled: int = 0
    disks: int = 1
    reads: int = 0
    parts: int = 0
    full_speed: bool = False
    rate: int = 0
    divisor: int = 4772
    touched: int = 0
    touch: tuple[int, int]
    noise: int
    table: int

    def patch(self, code: bytes) -> bytes:
        """The image with these parameters."""
        packed = _PARAMETERS.pack(
            _MAGIC, self.seed, FIRST_BLOCK, self.blocks, self.filled,
            self.disks, self.reads, self.parts, int(self.full_speed),
            self.rate, self.divisor, self.touched,
            *self.touch, self.noise, self.table, self.sectors,
        )  # fmt: skip
        return code[:_AT] + packed + code[_AT + _PARAMETERS.size :]


class State(NamedTuple):
    """What a stopped guest's memory says of it, at ``STATE``."""

    operation: int
    random: int
    boot: int
    reads: int
    bad_reads: int
    errors: int
    touched: int
    next_page: int
    credit: int

    @classmethod
    def read(cls, memory: bytes) -> State:
        """Take it from the bytes at ``STATE``; ``ValueError`` if the guest is not there."""
        mark, *fields = _STATE.unpack(memory)
        if mark != _MAGIC:
            raise ValueError("the guest's program is not in its memory")
        return cls(*fields)


def image() -> bytes:
    """The assembled program, without parameters."""
    return resources.files(__package__).joinpath("guest.bin").read_bytes()


class Operations(NamedTuple):
    """Some operations: for each, whether it writes, its disk, first sector and how many."""

    write: npt.NDArray[np.bool_]
    disk: Numbers
    first: Numbers
    length: Numbers


def _random(start: int, count: int) -> npt.NDArray[np.uint64]:
    """The next ``count`` random numbers after ``start``: factor^n * start + term * sum."""
    factors = np.full(count, _FACTOR, dtype=np.uint32)
    powers = np.cumprod(factors, dtype=np.uint32)
    sums = np.ones(count, dtype=np.uint32)
    sums[1:] = np.cumsum(powers[:-1], dtype=np.uint32) + np.uint32(1)
    numbers = powers * np.uint32(start & 0xFFFFFFFF) + sums * np.uint32(_TERM)
    return numbers.astype(np.uint64)


def operations(program: Program, boot: int, count: int) -> Operations:
    """The first ``count`` operations of a boot."""
    start = program.seed + boot * _PER_BOOT
    a, b, c = _random(start, 3 * count).reshape(count, 3).T.astype(np.int64)
    first = (((a * program.blocks) >> 32) + FIRST_BLOCK) * SECTORS
    part = ((c >> 16) & 255) < program.parts
    skipped = b >> 29
    wanted = np.minimum(1 + ((b >> 26) & 7), SECTORS - skipped)
    return Operations(
        write=(c >> 24) >= program.reads,
        disk=(((b >> 10) & 255) * program.disks) >> 8,
        first=first + np.where(part, skipped, 0),
        length=np.where(part, wanted, SECTORS),
    )
