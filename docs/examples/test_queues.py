"""The whole test file of a transport plugin."""

import pytest
from queues import QueueTransport

from vmferry.api import Address
from vmferry.testing.transport import TransportConformance


class TestQueues(TransportConformance):
    """The contract, between tasks."""

    @pytest.fixture
    def transport(self) -> QueueTransport:
        """The plugin, with its defaults."""
        return QueueTransport()

    @pytest.fixture
    def listen_address(self) -> Address:
        """A name that is free."""
        return Address.parse("queues://here")
