"""When QEMU may stop its guest: a word in the return path of its migration.

With the capability ``switchover-ack`` (QEMU 8.1) the source's QEMU goes on with its rounds, and
does not stop the guest, until a message of the return path says that it may
(``MIG_RP_MSG_SWITCHOVER_ACK`` in migration/migration.c). The destination's QEMU, without the
capability, never says it; it is said here, once all that can be done before the stop is done.
"""

from __future__ import annotations

import asyncio
from typing import Any

from vmferry.api.hypervisor import ByteStream

__all__ = ["ReturnPath"]

_HEAD = 4
_ACK = b"\x00\x07\x00\x00"
"""Type 7, no data; both numbers are big-endian, of two bytes."""


class ReturnPath:
    """A ``ByteStream`` that passes on ``stream``, and once ``allow`` is called the word with it.

    It is put between two messages of the other side, never into one.
    """

    def __init__(self, stream: ByteStream) -> None:
        self.channels = stream.channels
        self._stream = stream
        self._allowed = asyncio.Event()
        self._said = False
        self._reading: asyncio.Future[bytes | memoryview] | None = None
        self._head, self._body = b"", 0

    def allow(self) -> None:
        """Let QEMU stop the guest. May be called twice."""
        self._allowed.set()

    async def write(self, data: bytes | memoryview) -> None:
        """As the stream's."""
        await self._stream.write(data)

    async def write_eof(self) -> None:
        """As the stream's."""
        await self._stream.write_eof()

    async def read(self, limit: int = 1 << 20) -> bytes | memoryview:
        """As the stream's, or the word. When cancelled, what is being read is lost."""
        reading = self._reading or asyncio.ensure_future(self._stream.read(limit))
        self._reading = reading
        try:
            if await self._may_say(reading):
                self._said = True
                return _ACK
            data = await reading
        except asyncio.CancelledError:
            reading.cancel()
            raise
        self._reading = None
        self._follow(data)
        return data

    async def _may_say(self, reading: asyncio.Future[bytes | memoryview]) -> bool:
        """Wait for either; whether the word is due, and nothing has come before it."""
        if self._said or self._head or self._body:
            return False
        allowed = asyncio.ensure_future(self._allowed.wait())
        either: set[asyncio.Future[Any]] = {reading, allowed}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            allowed.cancel()
        return not reading.done()

    def _follow(self, data: bytes | memoryview) -> None:
        """Find out where in a message ``data`` ends."""
        rest = memoryview(data)
        while rest:
            if self._body:
                skipped = min(self._body, len(rest))
                self._body, rest = self._body - skipped, rest[skipped:]
                continue
            more = _HEAD - len(self._head)
            self._head, rest = self._head + bytes(rest[:more]), rest[more:]
            if len(self._head) == _HEAD:
                self._head, self._body = b"", int.from_bytes(self._head[2:], "big")
