"""From message to head of a frame and back. Nothing is believed that was not checked.

A head ends with the CRC-32 of what is before it: a bit that the network flips in an offset would
otherwise put good data in a wrong place.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec

from vmferry.errors import DigestMismatch, ProtocolError
from vmferry.wire.messages import MESSAGES, Message

__all__ = ["MAX_HEAD", "decode", "encode", "name_of", "salted", "summed"]

MAX_HEAD = 4 << 20
"""Most bytes of a head; an offer with its opaque configuration is the largest."""

_SUM = 4
_BY_NAME = {message.__name__: message for message in MESSAGES}
_LIMITS = {
    "max_str_len": 1 << 17,
    "max_bin_len": 2 << 20,
    "max_array_len": 1 << 16,
    "max_map_len": 1 << 12,
    "max_ext_len": 0,
}


def encode(message: Message) -> bytes:
    """The head that carries ``message``."""
    plain = msgspec.to_builtins(message, builtin_types=(bytes,))
    packed: bytes = msgpack.packb(plain, use_bin_type=True)
    return summed(packed)


def summed(packed: bytes) -> bytes:
    """``packed`` with its CRC-32 behind it, in network order."""
    return packed + zlib.crc32(packed).to_bytes(_SUM, "big")


def salted(head: bytes, salt: int) -> bytes:
    """``head`` with a checksum that only who knows ``salt``, of 32 bits, takes for right."""
    found = int.from_bytes(head[-_SUM:], "big")
    return head[:-_SUM] + (found ^ salt).to_bytes(_SUM, "big")


def name_of(head: bytes | memoryview) -> str:
    """The name of the message in ``head``, whatever its checksum; for who looks on."""
    return str(_unpack(head[:-_SUM])["t"])


def decode(head: bytes | memoryview, salt: int = 0) -> Message:
    """The message in ``head``, which was ``salted`` if ``salt`` is not 0.

    Raises:
        DigestMismatch: its checksum is another: it was changed on the way, or is of another salt.
        ProtocolError: it is no MessagePack, not one of the known messages, or a field is missing,
            of the wrong type or out of range; the text names the message and the field.

    """
    if len(head) > MAX_HEAD:
        raise ProtocolError(f"a head of {len(head)} bytes exceeds the limit of {MAX_HEAD}")
    plain = _unpack(_checked(head, salt))
    name = plain.get("t") if isinstance(plain, dict) else None
    kind = _BY_NAME.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"a head names no known message: {str(name)[:40]!r}")
    try:
        return msgspec.convert(plain, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise ProtocolError(f"message {name!r}: {error}") from None


def _checked(head: bytes | memoryview, salt: int) -> bytes | memoryview:
    packed, found = head[:-_SUM], head[-_SUM:]
    if (zlib.crc32(packed) ^ salt).to_bytes(_SUM, "big") != found:
        raise DigestMismatch("a head does not match its checksum: it was changed on the way")
    return packed


def _unpack(head: bytes | memoryview) -> Any:
    try:
        return msgpack.unpackb(head, raw=False, strict_map_key=True, **_LIMITS)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a head is not MessagePack: {error}") from None
