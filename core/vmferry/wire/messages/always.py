"""What may come at any time."""

from __future__ import annotations

from vmferry.wire.messages.fields import Long, Message, Short

__all__ = ["Bye", "Failure", "Heartbeat"]


class Bye(Message, frozen=True, kw_only=True):
    """The source has noted the end of the job."""


class Heartbeat(Message, frozen=True, kw_only=True):
    """The sender is alive."""


class Failure(Message, frozen=True, kw_only=True):
    """The sender gives up, and why.

    Attributes:
        kind: name of the error's class.
        text: for people.

    """

    kind: Short
    text: Long
