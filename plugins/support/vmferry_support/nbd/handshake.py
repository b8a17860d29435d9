"""Negotiation: fixed newstyle, structured replies, metadata contexts, ``NBD_OPT_GO``."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import NamedTuple

from vmferry_support.nbd.errors import NbdLost, NbdRefused
from vmferry_support.nbd.protocol import (
    FIXED_NEWSTYLE,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MAX_OPTION_REPLY,
    MAX_PAYLOAD,
    NBDMAGIC,
    NO_ZEROES,
    OPTION,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    U16,
    U32,
    Feature,
    Option,
    Reply,
)
from vmferry_support.nbd.wire import Wire

__all__ = ["Export", "negotiate"]

_EXPORT, _BLOCK_SIZE = 0, 3


class Export(NamedTuple):
    """What the server says of an export.

    Attributes:
        size: bytes.
        features: what it can do.
        unit: smallest offset and length of a request, bytes.
        largest: most bytes of data in one request.
        contexts: number of each metadata context that was asked for and granted.

    """

    size: int
    features: Feature
    unit: int
    largest: int
    contexts: dict[str, int]


async def negotiate(
    connection: socket.socket, wire: Wire, name: str, contexts: Sequence[str]
) -> Export:
    """Bring a connection that was just made to the transmission phase.

    Raises:
        NbdRefused: there is no such export, or no such context.
        NbdLost: the server is none, or an old one.
        OSError: the connection ended.

    """
    talk = _Negotiation(connection, wire, name)
    await talk.greet()
    await talk.structured_replies()
    granted = await talk.meta_contexts(contexts) if contexts else {}
    return await talk.go(granted)


class _Negotiation:
    def __init__(self, connection: socket.socket, wire: Wire, name: str) -> None:
        self._socket, self._wire, self._name = connection, wire, name
        encoded = name.encode()
        self._prefix = U32.pack(len(encoded)) + encoded

    async def greet(self) -> None:
        magic, option_magic, flags = GREETING.unpack(await self._wire.take(GREETING.size))
        if (magic, option_magic) != (NBDMAGIC, IHAVEOPT) or not flags & FIXED_NEWSTYLE:
            raise NbdLost("the server does not speak fixed newstyle NBD")
        if not flags & NO_ZEROES:
            flags = FIXED_NEWSTYLE
        await self._send(U32.pack(flags & (FIXED_NEWSTYLE | NO_ZEROES)))

    async def structured_replies(self) -> None:
        await self._ask(Option.STRUCTURED_REPLY, b"")
        kind, payload = await self._answer(Option.STRUCTURED_REPLY)
        if kind != Reply.ACK:
            raise _refusal("structured replies", kind, payload)

    async def meta_contexts(self, names: Sequence[str]) -> dict[str, int]:
        queries = b"".join(U32.pack(len(name.encode())) + name.encode() for name in names)
        await self._ask(Option.SET_META_CONTEXT, self._prefix + U32.pack(len(names)) + queries)
        granted: dict[str, int] = {}
        while True:
            kind, payload = await self._answer(Option.SET_META_CONTEXT)
            if kind == Reply.ACK:
                return granted
            if kind != Reply.META_CONTEXT or len(payload) < U32.size:
                raise _refusal(f"export {self._name!r}", kind, payload)
            context = payload[U32.size :].decode(errors="replace")
            if context in names:
                granted[context] = U32.unpack_from(payload)[0]

    async def go(self, contexts: dict[str, int]) -> Export:
        await self._ask(Option.GO, self._prefix + U16.pack(1) + U16.pack(_BLOCK_SIZE))
        size, features, unit, largest = -1, Feature(0), 1, MAX_PAYLOAD
        while True:
            kind, payload = await self._answer(Option.GO)
            if kind == Reply.ACK and size >= 0:
                return Export(size, features, unit, min(largest, MAX_PAYLOAD), contexts)
            if kind != Reply.INFO or len(payload) < U16.size:
                raise _refusal(f"export {self._name!r}", kind, payload)
            what, rest = U16.unpack_from(payload)[0], payload[U16.size :]
            if what == _EXPORT and len(rest) == INFO_EXPORT.size:
                size, bits = INFO_EXPORT.unpack(rest)
                features = Feature(bits)
            elif what == _BLOCK_SIZE and len(rest) == INFO_BLOCK_SIZE.size:
                unit, _, largest = INFO_BLOCK_SIZE.unpack(rest)
                if not unit or unit & (unit - 1) or largest < unit:
                    raise NbdLost(f"the server wants blocks of {unit} to {largest} bytes")

    async def _ask(self, option: Option, payload: bytes) -> None:
        await self._send(OPTION.pack(IHAVEOPT, option, len(payload)) + payload)

    async def _answer(self, asked: Option) -> tuple[int, bytes]:
        head = await self._wire.take(OPTION_REPLY.size)
        magic, option, kind, length = OPTION_REPLY.unpack(head)
        if magic != OPTION_REPLY_MAGIC or option != asked or length > MAX_OPTION_REPLY:
            raise NbdLost("the server broke the NBD negotiation")
        return kind, await self._wire.take(length)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)


def _refusal(what: str, kind: int, payload: bytes) -> NbdRefused | NbdLost:
    if not kind & Reply.ERROR:
        return NbdLost("the server broke the NBD negotiation")
    said = payload.decode(errors="replace").strip()
    if not said:
        said = "unknown" if kind == Reply.ERR_UNKNOWN else f"error {kind & ~Reply.ERROR}"
    return NbdRefused(f"{what} was refused: {said}")
