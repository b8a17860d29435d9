"""Who moves the data: a device played in software, or one that is there."""

from __future__ import annotations

from vmferry.api.transport import Address
from vmferry_transports.rdma.options import RdmaOptions
from vmferry_transports.rdma.providers.base import Provider
from vmferry_transports.rdma.providers.shared_memory import LOCAL, SharedMemory
from vmferry_transports.rdma.providers.verbs import Verbs

__all__ = ["choose"]


def choose(options: RdmaOptions, address: Address) -> Provider:
    """Return the provider for an address."""
    name = options.provider
    if name == "auto":
        name = "shared_memory" if address.host in LOCAL else "verbs"
    return SharedMemory() if name == "shared_memory" else Verbs(options)
