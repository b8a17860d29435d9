"""Frames on a byte stream.

::

    offset 0   u16  magic 0x5646
           2   u16  kind: 1 data, 2 end of the lane
           4   u32  bytes of the head
           8   u32  bytes of the payload
          12   head, payload

All numbers are in network order. An end carries neither head nor payload; a stream that stops
without one was cut off.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from typing import TypeAlias

from vmferry.api.transport import Frame, Limits
from vmferry.errors import ConnectionLost, ProtocolError

__all__ = ["END", "FrameParser", "data_header"]

_Step: TypeAlias = memoryview | Frame | None

_HEADER = struct.Struct("!HHII")
_MAGIC = 0x5646
_DATA, _END = 1, 2
_SCRATCH = 16 << 10

END = _HEADER.pack(_MAGIC, _END, 0, 0)
"""The last frame of a lane's direction."""


def data_header(head: int, payload: int) -> bytes:
    """Return the header of a frame with that many bytes of head and payload."""
    return _HEADER.pack(_MAGIC, _DATA, head, payload)


class FrameParser:
    """Makes frames of bytes that are put where it says.

    Small frames are taken many at a time from a scratch buffer; of a large payload all but what
    came along with its header goes straight into ``limits.allocate``.

    Attributes:
        room: where the next bytes belong; never empty.
        large: the rest of a head or payload is due: all of ``room`` will be needed.

    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._start = self._stop = 0
        self.large = False
        self._steps = self._run()
        self.room = self._next_room(next(self._steps))

    def took(self, count: int) -> Iterator[Frame | None]:
        """Frames that are complete now that ``count`` bytes were put into ``room``.

        ``None`` is the end of the lane; nothing is to be given after it.

        Raises:
            ProtocolError: what came is no frame or is larger than the limits; nothing was
                allocated for it.
            ConnectionLost: ``count`` is 0: the stream stopped without an end.

        """
        if not count:
            where = "within a frame" if self.large else "without closing it"
            raise ConnectionLost(f"the peer ended the connection {where}")
        step = self._steps.send(count)
        while not isinstance(step, memoryview):
            yield step
            if step is None:
                return
            step = next(self._steps)
        self.room = self._next_room(step)

    @staticmethod
    def _next_room(step: _Step) -> memoryview:
        assert isinstance(step, memoryview)
        return step

    def _run(self) -> Generator[_Step, int, None]:
        """Yields room for more bytes, and is sent their count; or yields a frame."""
        while (sizes := (yield from self._header())) is not None:
            head = yield from self._head(sizes[0])
            payload = (yield from self._payload(sizes[1])) if sizes[1] else b""
            yield Frame(head, payload)
            del head, payload
        yield None

    def _header(self) -> Generator[_Step, int, tuple[int, int] | None]:
        data = yield from self._take(_HEADER.size)
        magic, kind, head, payload = _HEADER.unpack(data)
        if magic != _MAGIC or kind not in (_DATA, _END):
            raise ProtocolError(f"no frame: magic {magic:#06x}, kind {kind}")
        if kind == _END:
            if head or payload:
                raise ProtocolError("an end of a lane with a head or payload")
            return None
        if head > self._limits.head:
            raise ProtocolError(f"head of {head} bytes; the limit is {self._limits.head}")
        if payload > self._limits.payload:
            raise ProtocolError(f"payload of {payload} bytes; the limit is {self._limits.payload}")
        return head, payload

    def _take(self, size: int) -> Generator[_Step, int, memoryview]:
        """Return ``size`` bytes of the scratch buffer, valid until the next call."""
        if len(self._scratch) - self._start < size or self._start == self._stop:
            rest = bytes(self._scratch[self._start : self._stop])
            self._scratch[: len(rest)] = rest
            self._start, self._stop = 0, len(rest)
        while self._stop - self._start < size:
            self._stop += yield self._scratch[self._stop :]
        self._start += size
        return self._scratch[self._start - size : self._start]

    def _head(self, size: int) -> Generator[_Step, int, bytes | memoryview]:
        if size <= _SCRATCH:
            return bytes((yield from self._take(size))) if size else b""
        return (yield from self._fill(memoryview(bytearray(size))))

    def _payload(self, size: int) -> Generator[_Step, int, memoryview]:
        buffer = self._limits.allocate(size)
        if buffer.nbytes != size:
            raise ConnectionLost(f"limits.allocate({size}) gave a buffer of {buffer.nbytes} bytes")
        return (yield from self._fill(buffer))

    def _fill(self, buffer: memoryview) -> Generator[_Step, int, memoryview]:
        have = min(buffer.nbytes, self._stop - self._start)
        buffer[:have] = self._scratch[self._start : self._start + have]
        self._start += have
        self.large = True
        while have < buffer.nbytes:
            have += yield buffer[have:]
        self.large = False
        return buffer
