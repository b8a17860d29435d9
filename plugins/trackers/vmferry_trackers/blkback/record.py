"""The record that the kernel keeps of one disk: two generations of a map, read in turns.

Reading a map and zeroing it loses what is marked in between. So one generation is marked while
the other lies idle; a harvest exchanges them, and the kernel says when no program uses the one
that was retired. All methods block, and are not to be called by two threads at once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time

import numpy as np
import numpy.typing as npt

from vmferry.dirtymap import DirtyMap
from vmferry.units import SECTOR
from vmferry_trackers.blkback.device import BlockDevice
from vmferry_trackers.blkback.program import (
    HEADER,
    IN_FLIGHT_BYTES,
    LONG_RANGES,
    LOST,
    RANGES,
    SEEN,
    Maps,
    make,
)
from vmferry_trackers.ebpf import kernel
from vmferry_trackers.ebpf.btf import Btf

__all__ = ["Generation", "Record", "absorb", "fitting_block_size", "map_words"]

_IN_FLIGHT = 16384
"""Bios of one device under way at once that can be told apart."""
_ACCOUNTED = 0.002
_LOOK = 8192
"""Words looked at in one go."""

Words = npt.NDArray[np.uint64]


def map_words(size: int, block_size: int) -> int:
    """Words of a generation's map, for a disk of ``size`` bytes."""
    blocks = -(-size // block_size)
    return HEADER + -(-blocks // 64)


def fitting_block_size(size: int, block_size: int, memory: int) -> int:
    """``block_size``, or the least larger one with which two bitmaps have ``memory`` at most."""
    while 2 * 8 * (map_words(size, block_size) - HEADER) > memory:
        block_size *= 2
    return block_size


def absorb(words: Words, into: DirtyMap) -> None:
    """Mark in ``into`` what a retired generation says, and zero it."""
    if words[LOST] or words[RANGES] > LONG_RANGES:
        into.mark_all()
    else:
        _absorb_ranges(words[2 : 2 + 2 * int(words[RANGES])].reshape(-1, 2), into)
        _absorb_bits(words[HEADER:], into)
    for at in range(0, len(words), _LOOK):
        part = words[at : at + _LOOK]
        if part.any():  # what was never written takes no memory
            part[:] = 0


def _absorb_ranges(ranges: Words, into: DirtyMap) -> None:
    shift = into.block_size.bit_length() - 1
    blocks = ranges.astype(np.int64)
    _mark(blocks[:, 0] << shift, blocks[:, 1] << shift, into)


def _absorb_bits(words: Words, into: DirtyMap) -> None:
    shift = into.block_size.bit_length() - 1
    for at in range(0, len(words), _LOOK):
        part = words[at : at + _LOOK]
        if not part.any():
            continue
        bits = np.unpackbits(part.view(np.uint8), bitorder="little")
        edges = np.flatnonzero(np.diff(bits, prepend=np.uint8(0), append=np.uint8(0)))
        starts, stops = edges[::2] + 64 * at, edges[1::2] + 64 * at
        _mark(starts << shift, (stops - starts) << shift, into)


def _mark(offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], into: DirtyMap) -> None:
    into.mark_runs(offsets, np.minimum(lengths, into.size - offsets))  # the last block


class Generation:
    """One of the two maps, mapped into this process."""

    def __init__(self, words: int) -> None:
        self.fd = kernel.create_array(words)
        try:
            length = -(-8 * words // mmap.PAGESIZE) * mmap.PAGESIZE
            self._memory = mmap.mmap(self.fd, length)
        except BaseException:
            os.close(self.fd)
            raise
        self.words: Words = np.frombuffer(self._memory, "<u8", words)

    def close(self) -> None:
        """Give the memory back."""
        del self.words
        self._memory.close()
        os.close(self.fd)


class Record:
    """Programs attached to the kernel, and the maps they mark.

    Raises:
        BpfError: the kernel refuses.
        BtfError: it lacks something.

    """

    def __init__(self, device: BlockDevice, block_size: int) -> None:
        self._device = device
        self._size, self._block_size = device.sectors * SECTOR, block_size
        self._unread = False
        self._pending = DirtyMap(self._size, block_size)
        with contextlib.ExitStack() as made:
            words = map_words(self._size, block_size)
            self._marked = Generation(words)
            made.callback(lambda: self._marked.close())
            self._idle = Generation(words)
            made.callback(lambda: self._idle.close())
            self._current = _closed_by(made, kernel.create_array_of_maps(self._marked.fd))
            kernel.set_map(self._current, self._marked.fd)
            self._in_flight = 0
            if not device.kind.requests:
                self._in_flight = _closed_by(made, kernel.create_hash(IN_FLIGHT_BYTES, _IN_FLIGHT))
            self._load(made)
            self._made = made.pop_all()

    def _load(self, made: contextlib.ExitStack) -> None:
        maps = Maps(self._current, self._in_flight)
        programs = make(Btf.of_kernel(), self._device, self._block_size, maps)
        self._programs = [
            _closed_by(made, kernel.load_program(each.tracepoint, each.code, each.type_id))
            for each in programs
        ]

    def attach(self) -> None:
        """Begin to mark: what completes from here on is in a later ``collect``."""
        for program in self._programs:
            _closed_by(self._made, kernel.attach(program))
        self._seen = self._device.sectors_written()

    def forget_loss(self) -> None:
        """Do not take for lost what was written before now without having been seen."""
        self._marked.words[LOST] = 0

    def collect(self) -> None:
        """Move what was marked to where ``take`` finds it.

        The kernel may run a program not at every event. What was written by its statistics and not
        seen makes all dirty. What is missing while writes of a device-mapper device are in flight
        may be these: it is not forgotten, and judged when none is, at the latest after the drain.
        """
        self._absorb_idle()
        written, ended = self._written()
        time.sleep(_ACCOUNTED)  # what was counted by now has also been seen after that
        kernel.set_map(self._current, self._idle.fd)
        self._marked, self._idle = self._idle, self._marked
        self._unread = True
        self._seen += int(self._idle.words[SEEN])
        if ended and self._seen < written:
            self._pending.mark_all()
            self._seen = written
        self._absorb_idle()
        # Too much that was seen must not outweigh what is missed later.
        self._seen = min(self._seen, self._device.sectors_written())

    def _written(self) -> tuple[int, bool]:
        """Sectors written by the kernel's statistics, and whether these writes have all ended."""
        written = self._device.sectors_written()
        if self._device.kind.requests:
            return written, True
        none = self._device.writes_in_flight() == 0
        return written, none and self._device.sectors_written() == written

    def _absorb_idle(self) -> None:
        if self._unread:
            absorb(self._idle.words, self._pending)
            self._unread = False

    def take(self) -> DirtyMap:
        """What was collected since the last time; does not block."""
        return self._pending.take()

    def in_flight(self) -> int:
        """Writes under way, by the kernel's statistics: what was issued and has not ended."""
        return self._device.writes_in_flight()

    def close(self) -> None:
        """End marking and give all back; may be called twice."""
        self._made.close()


def _closed_by(made: contextlib.ExitStack, fd: int) -> int:
    made.callback(os.close, fd)
    return fd
