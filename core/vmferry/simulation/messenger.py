"""Messages of a simulated hypervisor over its byte stream."""

from __future__ import annotations

import msgspec

from vmferry.api.hypervisor import ByteStream
from vmferry.errors import HypervisorError

__all__ = ["Message", "Messenger"]

_LARGEST = 64 << 20


class Message(msgspec.Struct, frozen=True):
    """One message: ``kind`` is ``pages``, ``state``, ``go``."""

    kind: str
    pages: list[int] = []
    data: bytes = b""


class Messenger:
    """Sends and receives messages, each behind its length in four bytes."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def send(self, message: Message) -> None:
        """Send one message."""
        encoded = msgspec.msgpack.encode(message)
        await self.stream.write(len(encoded).to_bytes(4, "big") + encoded)

    async def receive(self) -> Message:
        """The next message; raises ``HypervisorError`` at the end of the stream."""
        size = int.from_bytes(await self._exactly(4), "big")
        if size > _LARGEST:
            raise HypervisorError(f"a message of {size} bytes on the memory stream")
        return msgspec.msgpack.decode(await self._exactly(size), type=Message)

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = await self.stream.read(min(1 << 20, size - len(self._buffer)))
            if not piece:
                raise HypervisorError("the memory stream ended before the guest was complete")
            self._buffer += piece
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
