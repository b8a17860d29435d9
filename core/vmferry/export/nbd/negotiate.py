"""The handshake: fixed newstyle, until an export is chosen or the client leaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from vmferry.errors import ProtocolError
from vmferry.export.nbd.exports import Export, Session
from vmferry.export.nbd.meta import ALLOCATION, MetaQuery, parse_meta
from vmferry.export.nbd.options import OptionRefused, export_infos, parse_go
from vmferry.export.nbd.protocol import (
    CLIENT_FLAGS,
    CONTEXT_ID,
    EXPORT_NAME_REPLY,
    FIXED_NEWSTYLE,
    INIT_MAGIC,
    MAX_NAME,
    MAX_OPTION,
    NO_ZEROES,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    SERVER_GREETING,
    U32,
    Option,
    OptionReply,
)
from vmferry.export.nbd.replies import ALLOCATION_ID
from vmferry.export.nbd.stream import Incoming

__all__ = ["Handshake"]

_MAX_SKIPPED: Final = 1 << 20
_MAX_OPTIONS: Final = 1024


class Handshake:
    """Negotiates with one client."""

    def __init__(
        self, sock: socket.socket, incoming: Incoming, exports: Mapping[str, Export]
    ) -> None:
        self._sock, self._incoming, self._exports = sock, incoming, exports
        self._loop = asyncio.get_running_loop()
        self._no_zeroes = self._structured = self._ended = False
        self._allocation_of: Export | None = None
        self._session: Session | None = None

    async def run(self) -> Session | None:
        """Answer options until transmission begins; ``None`` when the client aborts.

        Raises:
            ConnectionLost: the client went away.
            ProtocolError: it does not speak fixed newstyle NBD, or wants too much.

        """
        greeting = SERVER_GREETING.pack(INIT_MAGIC, OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES)
        await self._send(greeting)
        (flags,) = await self._incoming.unpack(U32)
        if flags & ~CLIENT_FLAGS or not flags & FIXED_NEWSTYLE:
            raise ProtocolError(f"client flags {flags:#x}: only fixed newstyle is spoken")
        self._no_zeroes = bool(flags & NO_ZEROES)
        for _ in range(_MAX_OPTIONS):
            await self._option()
            if self._ended or self._session:
                return self._session
        raise ProtocolError(f"more than {_MAX_OPTIONS} options before an export was chosen")

    async def _option(self) -> None:
        magic, option, length = await self._incoming.unpack(OPTION)
        if magic != OPTION_MAGIC:
            raise ProtocolError(f"an option begins with {magic:#x}")
        if length > MAX_OPTION:
            await self._too_big(option, length)
            return
        data = await self._incoming.take(length)
        handler = _HANDLERS.get(option)
        try:
            if handler is None:
                raise OptionRefused(OptionReply.ERR_UNSUP, f"option {option} is not supported")
            await handler(self, option, data)
        except OptionRefused as refused:
            await self._reply(option, refused.reply, str(refused).encode())

    async def _too_big(self, option: int, length: int) -> None:
        if length > _MAX_SKIPPED or option == Option.EXPORT_NAME:
            raise ProtocolError(f"option {option} with {length} bytes of data")
        await self._incoming.skip(length)
        text = f"an option has at most {MAX_OPTION} bytes of data"
        await self._reply(option, OptionReply.ERR_TOO_BIG, text.encode())

    async def _reply(self, option: int, reply: int, data: bytes = b"") -> None:
        await self._send(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data)

    async def _send(self, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(self._sock, data)
        except OSError as error:
            raise ProtocolError(f"the client left during the handshake: {error}") from error

    def _find(self, name: str) -> Export:
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        export = self._exports.get(name)
        if export is None:
            raise OptionRefused(OptionReply.ERR_UNKNOWN, f"there is no export named {name!r}")
        return export

    def _begin(self, export: Export) -> Session:
        chosen = self._allocation_of is export
        self._session = Session(export, structured=self._structured, allocation=chosen)
        return self._session

    async def _export_name(self, option: int, data: bytes) -> None:
        try:
            export = self._find(data[: MAX_NAME + 1].decode())
        except (OptionRefused, UnicodeDecodeError) as error:
            raise ProtocolError(f"the client asked for an unknown export: {error}") from error
        self._begin(export)
        flags = export.flags(structured=self._structured)
        reply = EXPORT_NAME_REPLY.pack(export.geometry.size, flags)
        await self._send(reply if self._no_zeroes else reply + bytes(124))

    async def _abort(self, option: int, data: bytes) -> None:
        self._ended = True
        await self._reply(option, OptionReply.ACK)

    async def _list(self, option: int, data: bytes) -> None:
        if data:
            raise OptionRefused(OptionReply.ERR_INVALID, "LIST takes no data")
        for name in list(self._exports):
            encoded = name.encode()
            await self._reply(option, OptionReply.SERVER, U32.pack(len(encoded)) + encoded)
        await self._reply(option, OptionReply.ACK)

    async def _starttls(self, option: int, data: bytes) -> None:
        raise OptionRefused(OptionReply.ERR_POLICY, "TLS is not offered on this socket")

    async def _structured_reply(self, option: int, data: bytes) -> None:
        if data:
            raise OptionRefused(OptionReply.ERR_INVALID, "STRUCTURED_REPLY takes no data")
        self._structured = True
        await self._reply(option, OptionReply.ACK)

    async def _go(self, option: int, data: bytes) -> None:
        name, wanted = parse_go(data)
        export = self._find(name)
        for info in export_infos(export, wanted, structured=self._structured):
            await self._reply(option, OptionReply.INFO, info)
        if option == Option.GO:
            self._begin(export)
        await self._reply(option, OptionReply.ACK)

    async def _list_meta(self, option: int, data: bytes) -> None:
        query = self._meta(data)
        if query.lists_allocation:
            await self._reply(
                option, OptionReply.META_CONTEXT, CONTEXT_ID.pack(0) + ALLOCATION.encode()
            )
        await self._reply(option, OptionReply.ACK)

    async def _set_meta(self, option: int, data: bytes) -> None:
        self._allocation_of = None
        query = self._meta(data)
        if query.sets_allocation:
            self._allocation_of = self._find(query.name)
            context = CONTEXT_ID.pack(ALLOCATION_ID) + ALLOCATION.encode()
            await self._reply(option, OptionReply.META_CONTEXT, context)
        await self._reply(option, OptionReply.ACK)

    def _meta(self, data: bytes) -> MetaQuery:
        if not self._structured:
            raise OptionRefused(OptionReply.ERR_INVALID, "negotiate structured replies first")
        query = parse_meta(data)
        self._find(query.name)
        return query


_HANDLERS: Final[dict[int, Callable[[Handshake, int, bytes], Awaitable[None]]]] = {
    Option.EXPORT_NAME: Handshake._export_name,
    Option.ABORT: Handshake._abort,
    Option.LIST: Handshake._list,
    Option.STARTTLS: Handshake._starttls,
    Option.INFO: Handshake._go,
    Option.GO: Handshake._go,
    Option.STRUCTURED_REPLY: Handshake._structured_reply,
    Option.LIST_META_CONTEXT: Handshake._list_meta,
    Option.SET_META_CONTEXT: Handshake._set_meta,
}
