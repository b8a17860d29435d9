"""NBD, the server's side: how a disk of this process is shown to QEMU, the kernel and nbdcopy."""

from vmferry.export.nbd.budget import Limits
from vmferry.export.nbd.server import NbdServer

__all__ = ["Limits", "NbdServer"]
