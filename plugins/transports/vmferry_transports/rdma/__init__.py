"""The ``rdma`` transport: the shape of RDMA verbs, over providers that can be exchanged.

It is a **stub** where there is no device: ``shared_memory`` plays the device in software, between
processes of one host. With ``verbs`` the same lanes run on a device, through pyverbs.

Every lane is a reliable-connected queue pair. A frame begins with a SEND, which carries small
frames whole. Bulk data is written by one-sided WRITE with immediate into the receiver's landing
zone, a registered region of slots; the immediate names the slot. The receiver takes data out of
the slots when somebody calls ``receive`` and then gives the slots back by credits, so what waits
is bounded by memory that was registered at the start.
"""

from vmferry_transports.rdma.options import RdmaOptions
from vmferry_transports.rdma.transport import RdmaTransport

__all__ = ["RdmaOptions", "RdmaTransport"]
