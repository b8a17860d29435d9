"""What the fields of messages are made of, with their bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = [
    "MAX_CHANNELS",
    "MAX_EPOCH",
    "MAX_RECONNECT",
    "PROTOCOL_NEWEST",
    "PROTOCOL_OLDEST",
    "Channels",
    "Codecs",
    "Count",
    "Digest",
    "DiskIndex",
    "Epoch",
    "JobId",
    "Length",
    "Long",
    "Message",
    "Secret",
    "Short",
]

PROTOCOL_NEWEST = 1
PROTOCOL_OLDEST = 1
"""Versions this agent speaks; a release speaks its own and the one before."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Length = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
DiskIndex = Annotated[int, msgspec.Meta(ge=0, le=255)]
JobId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{8,64}$")]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Secret = Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
Short = Annotated[str, msgspec.Meta(max_length=255)]
Long = Annotated[str, msgspec.Meta(max_length=65536)]
Codecs = Annotated[tuple[Short, ...], msgspec.Meta(max_length=16)]
MAX_RECONNECT = 30 * 86400
"""Most seconds that a source may ask to be waited for."""
MAX_CHANNELS = 16
"""Most channels beside the hypervisor's stream."""
Channels = Annotated[int, msgspec.Meta(ge=0, le=MAX_CHANNELS)]
MAX_EPOCH = 1 << 52
"""Highest that a source may say that it knows; those that follow on it have room above."""
Epoch = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag=lambda name: name):
    """Base of all messages. Unknown fields are ignored, so that a version may add some."""
