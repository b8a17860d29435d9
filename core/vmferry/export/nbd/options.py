"""Data of handshake options: parsing what a client sent, and telling it about an export."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.export.nbd.exports import Export
from vmferry.export.nbd.protocol import (
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    INFO_HEAD,
    MAX_NAME,
    U16,
    U32,
    Info,
    OptionReply,
)

__all__ = ["OptionData", "OptionRefused", "export_infos", "parse_go"]


class OptionRefused(Exception):
    """An option that is answered with an error; the handshake goes on.

    Attributes:
        reply: the error the client gets; the message goes with it.

    """

    def __init__(self, reply: OptionReply, message: str) -> None:
        self.reply = reply
        super().__init__(message)


class OptionData:
    """Takes fields off the data of one option; raises ``OptionRefused`` if they are not there."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def u16(self) -> int:
        """The next two bytes."""
        return int.from_bytes(self._take(U16.size))

    def u32(self) -> int:
        """The next four bytes."""
        return int.from_bytes(self._take(U32.size))

    def text(self) -> str:
        """A string behind its length in four bytes."""
        length = self.u32()
        if length > MAX_NAME:
            raise OptionRefused(OptionReply.ERR_TOO_BIG, f"a name has at most {MAX_NAME} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise OptionRefused(OptionReply.ERR_INVALID, "a name is not UTF-8") from error

    def end(self) -> None:
        """Refuse data that was not asked for."""
        if self._at != len(self._data):
            raise OptionRefused(OptionReply.ERR_INVALID, "the option has too much data")

    def _take(self, length: int) -> bytes:
        self._at, start = self._at + length, self._at
        if self._at > len(self._data):
            raise OptionRefused(OptionReply.ERR_INVALID, "the option has too little data")
        return self._data[start : self._at]


def parse_go(data: bytes) -> tuple[str, frozenset[int]]:
    """Name of the export and kinds of information asked for by ``INFO`` or ``GO``."""
    fields = OptionData(data)
    name = fields.text()
    wanted = frozenset(fields.u16() for _ in range(fields.u16()))
    fields.end()
    return name, wanted


def export_infos(export: Export, wanted: frozenset[int], *, structured: bool) -> Iterator[bytes]:
    """The information blocks about an export: size and flags, block sizes, its name on request."""
    flags = export.flags(structured=structured)
    yield INFO_EXPORT.pack(Info.EXPORT, export.geometry.size, flags)
    yield INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *export.block_sizes)
    if Info.NAME in wanted:
        yield INFO_HEAD.pack(Info.NAME) + export.name.encode()
