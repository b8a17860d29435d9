"""Requests without a reply, and the replies that come for them, chunk by chunk."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vmferry_support.nbd.errors import NbdLost
from vmferry_support.nbd.protocol import (
    DESCRIPTOR,
    DONE,
    ERROR_BIT,
    MAX_MESSAGE,
    MAX_PAYLOAD,
    U16,
    U32,
    U64,
    Chunk,
    Command,
)
from vmferry_support.nbd.wire import Wire

__all__ = ["Pending", "Status"]

_WORD = np.dtype(">u4")


class Status(NamedTuple):
    """A stretch of the disk as a metadata context describes it: extents, ascending, gapless.

    Attributes:
        offset: where the first one begins, bytes.
        lengths: bytes of each.
        flags: the context's flags of each.

    """

    offset: int
    lengths: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint32]


class Pending:
    """One request under way; ``future`` ends with it."""

    def __init__(
        self, command: Command, offset: int, length: int, data: memoryview | None = None
    ) -> None:
        self.command, self.offset, self.length, self.data = command, offset, length, data
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.statuses: dict[int, Status] = {}
        self._filled: list[tuple[int, int]] = []
        self._failure: OSError | None = None

    def simple(self, number: int) -> None:
        """The whole reply is an error number, 0 if there was none."""
        if not number and self.command in {Command.READ, Command.BLOCK_STATUS}:
            raise NbdLost("a read was answered without its data")
        if number:
            self._fail(number, "")
        self.finish()

    async def chunk(self, wire: Wire, flags: int, kind: int, length: int) -> bool:
        """Take a chunk's payload of ``length`` bytes; True if it is the reply's last."""
        if kind & ERROR_BIT:
            await self._error(wire, length)
        elif kind == Chunk.DATA and self.command is Command.READ:
            await self._take_data(wire, length)
        elif kind == Chunk.HOLE and self.command is Command.READ and length == 12:
            payload = await wire.take(length)
            offset, size = U64.unpack_from(payload)[0], U32.unpack_from(payload, 8)[0]
            view = self._place(offset, size)
            view[:] = bytes(size)
        elif kind == Chunk.STATUS and self.command is Command.BLOCK_STATUS:
            await self._take_status(wire, length)
        elif kind != Chunk.NONE or length:
            raise NbdLost(f"chunk of kind {kind} and {length} bytes for a {self.command.name}")
        return bool(flags & DONE)

    def finish(self) -> None:
        """The reply is complete: end the future."""
        if self._failure is None and self.command is Command.READ:
            self._check_filled()
        if self.future.done():
            return
        if self._failure is not None:
            self.future.set_exception(self._failure)
        else:
            self.future.set_result(None)

    async def _take_data(self, wire: Wire, length: int) -> None:
        if length <= U64.size:
            raise NbdLost("a chunk of data without data")
        offset = U64.unpack(await wire.take(U64.size))[0]
        await wire.fill(self._place(offset, length - U64.size))

    def _place(self, offset: int, length: int) -> memoryview:
        """Where in the caller's buffer the bytes of this range of the disk go."""
        begin = offset - self.offset
        assert self.data is not None
        if begin < 0 or not length or begin + length > self.length:
            raise NbdLost(f"{length} bytes at {offset} were not asked for")
        self._filled.append((begin, begin + length))
        return self.data[begin : begin + length]

    def _check_filled(self) -> None:
        end = 0
        for begin, stop in sorted(self._filled):
            if begin != end:
                raise NbdLost("a reply has not each byte once")
            end = stop
        if end != self.length:
            raise NbdLost(f"{end} of {self.length} bytes came")

    async def _take_status(self, wire: Wire, length: int) -> None:
        rest = length - U32.size
        if rest < DESCRIPTOR.size or rest % DESCRIPTOR.size or length > MAX_PAYLOAD:
            raise NbdLost(f"a block status of {length} bytes")
        context = U32.unpack(await wire.take(U32.size))[0]
        words = np.frombuffer(await wire.take(rest), dtype=_WORD).reshape(-1, 2)
        lengths, flags = words[:, 0].astype(np.int64), words[:, 1].astype(np.uint32)
        if not lengths.all() or context in self.statuses:
            raise NbdLost("a block status with an empty extent, or twice")
        over = int(lengths.sum()) - self.length
        if over > 0:
            # Only the last one may reach beyond what was asked for.
            lengths[-1] -= over
            if lengths[-1] <= 0:
                raise NbdLost("a block status that is too long")
        self.statuses[context] = Status(self.offset, lengths, flags)

    async def _error(self, wire: Wire, length: int) -> None:
        if not 6 <= length <= 6 + MAX_MESSAGE + U64.size:
            raise NbdLost(f"an error of {length} bytes")
        payload = await wire.take(length)
        size = U16.unpack_from(payload, 4)[0]
        self._fail(U32.unpack_from(payload)[0], payload[6 : 6 + size].decode(errors="replace"))

    def _fail(self, number: int, text: str) -> None:
        number = number or errno.EIO
        where = f"{self.command.name} of {self.length} bytes at {self.offset}"
        said = os.strerror(number) + (f" ({text})" if text else "")
        self._failure = self._failure or OSError(number, f"{where}: {said}")
