"""What both ends say on a new connection before the greeting of the ``tcp`` transport.

::

    caller's proxy   {"client": "10.0.0.1", "server": "10.0.0.2"} and a newline, from SSH_CONNECTION
    agent            vmferry-ssh VERSION RELEASE SERVER and a newline
    caller           optionally, once: "vmferryd", u32 length, JSON ``Ask``
    agent            "vmferryd", u32 length, JSON ``Answer``
    caller           the greeting of the lane

What the caller's shell prints at login comes before the agent's line and is passed over.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec

from vmferry.errors import LinkError

__all__ = [
    "EXCHANGE_VERSION",
    "Answer",
    "Ask",
    "Banner",
    "Intro",
    "body_size",
    "pack",
    "unpack",
]

EXCHANGE_VERSION = 1
MAGIC = b"vmferryd"
HEADER = struct.Struct("!8sI")
_MOST = 16 << 10
_WORD = "vmferry-ssh"

Host = Annotated[str, msgspec.Meta(max_length=256)]
T = TypeVar("T")


class Intro(msgspec.Struct, frozen=True, kw_only=True):
    """What the proxy says to the agent.

    Attributes:
        client: address that the login came from, as sshd saw it; may be empty.
        server: this host's address that it came to.

    """

    client: Host = ""
    server: Host = ""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A wish for a direct connection.

    Attributes:
        session: the greeting's, in hexadecimal digits.
        certificate: the caller's, in PEM.

    """

    session: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    certificate: Annotated[str, msgspec.Meta(max_length=8 << 10)]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of it.

    Attributes:
        port: where the agent listens for that session alone; 0 if it does not.
        certificate: the agent's, in PEM.
        refused: why it does not.

    """

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    certificate: Annotated[str, msgspec.Meta(max_length=8 << 10)] = ""
    refused: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class Banner(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's first line.

    Attributes:
        version: of this exchange.
        release: of vmferry there.
        server: the host's address that the login came to; may be empty.

    """

    version: int
    release: str
    server: str = ""

    def encode(self) -> bytes:
        """The line."""
        return f"{_WORD} {self.version} {self.release} {self.server}".rstrip().encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Banner | None:
        """Take a line apart; ``None`` if it is none of the agent's."""
        words = line.decode("ascii", errors="replace").split()
        if len(words) not in (3, 4) or words[0] != _WORD or not words[1].isdecimal():
            return None
        return cls(version=int(words[1]), release=words[2], server="".join(words[3:]))


def pack(message: Ask | Answer) -> bytes:
    """The bytes of a message."""
    body = msgspec.json.encode(message)
    return HEADER.pack(MAGIC, len(body)) + body


def body_size(header: bytes) -> int:
    """How many bytes follow a header; raises ``LinkError`` if it is none or they are too many."""
    magic, size = HEADER.unpack(header)
    if magic != MAGIC or size > _MOST:
        raise LinkError("what it sent is no message of the ssh transport")
    return int(size)


def unpack(body: bytes, kind: type[T]) -> T:
    """The message in ``body``; raises ``LinkError`` naming what is wrong with it."""
    try:
        return msgspec.json.decode(body, type=kind)
    except ValueError as error:  # msgspec's own, and UnicodeDecodeError
        raise LinkError(f"{kind.__name__}: {error}") from None
