"""The messages of the protocol: typed, validated, one struct each.

A message travels as the head of a frame: a MessagePack map with the message's name under ``t`` and
its fields under their own names. Bulk data is the frame's payload. Every number is bounded here, so
that what reaches the engine is of the right type and size; whether it fits *this* job (a disk that
exists, an offset inside it) is checked where it is used.

The dialogue (source on the left), with the control lane's messages in capitals order::

    Hello ->            <- Welcome            versions, codecs; on a fresh connection
    Offer ->            <- Accepted | Refused  the guest; destination checks and reserves
    Extent*, Barrier -> <- Reached            PUSH, per round, on the bulk lanes
    Stream* <->         <-> Taken*            memory, on the stream lane
    Suspended ->                              STOP
    PendingMap* ->      <- Ready              bitmaps over, stored; guest complete and paused
    Go ->               <- Running            the commit
    Extent* ->          <- Fetch*             PULL: pushed on bulk lanes, fetched on control
    Pushed ->           <- Local              nothing is pending, every disk is pivoted
    Bye ->

On a connection whose ``Hello`` has a token the source says next what it wants of the job::

    Attach ->           <- Resumed            go on with it: PUSH, or what follows Ready
    Compare* ->         <- Digests*           PUSH again, if what is there is not known for sure
    Inquire ->          <- Account            what does the destination's journal say?
    Withdraw ->         <- Account            never run the guest under this epoch

Either side may send ``Failure`` at any time before the commit, and ``Heartbeat`` always.
"""

from __future__ import annotations

from vmferry.wire.messages.always import Bye, Failure, Heartbeat
from vmferry.wire.messages.data import (
    Barrier,
    Compare,
    Digests,
    Extent,
    Fetch,
    Local,
    PendingMap,
    Pushed,
    Reached,
    Stream,
    Suspended,
    Taken,
)
from vmferry.wire.messages.fields import (
    MAX_CHANNELS,
    MAX_EPOCH,
    MAX_RECONNECT,
    PROTOCOL_NEWEST,
    PROTOCOL_OLDEST,
    Message,
)
from vmferry.wire.messages.greeting import Accepted, AcceptedDisk, Hello, Offer, Refused, Welcome
from vmferry.wire.messages.ownership import (
    Account,
    Attach,
    Go,
    Inquire,
    Ready,
    Resumed,
    Running,
    Withdraw,
)

__all__ = [
    "MAX_CHANNELS",
    "MAX_EPOCH",
    "MAX_RECONNECT",
    "MESSAGES",
    "PROTOCOL_NEWEST",
    "PROTOCOL_OLDEST",
    "Accepted",
    "AcceptedDisk",
    "Account",
    "Attach",
    "Barrier",
    "Bye",
    "Compare",
    "Digests",
    "Extent",
    "Failure",
    "Fetch",
    "Go",
    "Heartbeat",
    "Hello",
    "Inquire",
    "Local",
    "Message",
    "Offer",
    "PendingMap",
    "Pushed",
    "Reached",
    "Ready",
    "Refused",
    "Resumed",
    "Running",
    "Stream",
    "Suspended",
    "Taken",
    "Welcome",
    "Withdraw",
]

MESSAGES: tuple[type[Message], ...] = (
    Hello,
    Welcome,
    Offer,
    Accepted,
    Refused,
    Extent,
    Barrier,
    Reached,
    Stream,
    Taken,
    Suspended,
    PendingMap,
    Ready,
    Go,
    Running,
    Attach,
    Resumed,
    Compare,
    Digests,
    Inquire,
    Withdraw,
    Account,
    Fetch,
    Pushed,
    Local,
    Bye,
    Heartbeat,
    Failure,
)
"""Every message there is; a head that names another is refused."""
