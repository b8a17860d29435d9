"""What can go wrong with an NBD server; a request it fails is an ``OSError`` with its errno."""

from __future__ import annotations

from vmferry.errors import VmferryError

__all__ = ["NbdError", "NbdLost", "NbdRefused"]


class NbdError(VmferryError):
    """The server cannot be used; the message names the export and the socket."""


class NbdRefused(NbdError):
    """The server has no such export, or not what was asked for with it."""


class NbdLost(NbdError):
    """The connection ended, or the server broke the protocol. Requests were done or not."""
