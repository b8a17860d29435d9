"""The guest's own record: what it said on its serial line, wherever it ran."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vmferry_hypervisors.qemu.workload.heard import Heard
from vmferry_hypervisors.qemu.workload.recorder import Said

__all__ = ["Boot", "Record", "Spoken"]

_LINE = re.compile(rb"([SWRX!])([0-9A-F]{8})")
_LETTERS = b"SWRX!"


class Boot(NamedTuple):
    """What was said between two starts.

    Attributes:
        number: of the boot.
        last: the last operation that was acknowledged, counted from 1; 0 if none.

    """

    number: int
    last: int


class Spoken(NamedTuple):
    """The record, read.

    Attributes:
        boots: in order.
        faults: lines that cannot be: an operation twice, one left out, one unreadable.

    """

    boots: tuple[Boot, ...]
    faults: tuple[str, ...]


class Record(Heard):
    """The recorder's file as the program in the boot sector speaks.

    Attributes:
        writes, reads, bad_reads, errors: said so far.
        boots, ticks: starts and timer ticks said so far; a tick is a word, too.

    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes = self.reads = self.bad_reads = self.errors = self.boots = self.ticks = 0
        self._text = bytearray()

    def _hear(self, said: Said) -> None:
        self._count(said.data)
        self._text += said.data

    def _count(self, data: bytes) -> None:
        self.writes += data.count(b"W")
        self.reads += data.count(b"R") + data.count(b"X")
        self.bad_reads += data.count(b"X")
        self.errors += data.count(b"!")
        self.boots += data.count(b"S")
        self.ticks += data.count(b".")

    def spoken(self) -> Spoken:
        """Read line by line what was said so far; ticks are left out."""
        lines = bytes(self._text).replace(b".", b"").split(b"\n")
        boots: list[Boot] = []
        faults: list[str] = []
        for line in lines[:-1]:
            match = _LINE.search(line)
            if match is None or (not boots and match[1] != b"S"):
                faults.append(f"line {line!r} cannot be")
                continue
            if match.start() and match[1] != b"S":
                faults.append(f"line {line!r} is two")
            self._take(match[1], int(match[2], 16), boots, faults)
        return Spoken(tuple(boots), tuple(faults))

    @staticmethod
    def _take(letter: bytes, number: int, boots: list[Boot], faults: list[str]) -> None:
        if letter == b"S":
            if number != len(boots):
                faults.append(f"boot {number} after {len(boots)} boots")
            boots.append(Boot(number, 0))
        elif letter != b"!":
            last = boots[-1]
            expected = (last.number << 24) + last.last + 1
            if number != expected:
                faults.append(f"operation {number:#x} was said where {expected:#x} was due")
            boots[-1] = last._replace(last=number & 0xFFFFFF)
