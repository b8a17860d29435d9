"""The shape of RDMA keeps the contract of a transport, on shared memory."""

import pytest

from vmferry.api.transport import Address
from vmferry.testing.transport import TransportConformance
from vmferry_transports.rdma import RdmaOptions, RdmaTransport


class TestRdma(TransportConformance):
    @pytest.fixture
    def transport(self):
        return RdmaTransport()

    @pytest.fixture
    def listen_address(self):
        return Address.parse("rdma://127.0.0.1")

    def relayed(self, address, port):
        """Nothing can get between two processes and their memory."""


class TestRdmaWithSmallSlots(TestRdma):
    """A large frame goes around the landing zone several times."""

    @pytest.fixture
    def transport(self):
        return RdmaTransport(RdmaOptions(slot=128 << 10, slots=11))
