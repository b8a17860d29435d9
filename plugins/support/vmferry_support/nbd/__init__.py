"""A client of NBD, the network block device protocol, on unix sockets.

As the specification has it (NetworkBlockDevice/nbd, doc/proto.md): fixed newstyle negotiation,
structured replies, and the metadata contexts of QEMU's exports. A server is not trusted: whatever
does not fit ends the connection with an ``NbdLost``.
"""

from vmferry_support.nbd.client import NbdClient
from vmferry_support.nbd.errors import NbdError, NbdLost, NbdRefused
from vmferry_support.nbd.handshake import Export
from vmferry_support.nbd.pending import Status
from vmferry_support.nbd.protocol import ALLOCATION, dirty_bitmap

__all__ = [
    "ALLOCATION",
    "Export",
    "NbdClient",
    "NbdError",
    "NbdLost",
    "NbdRefused",
    "Status",
    "dirty_bitmap",
]
