"""The transport keeps its contract."""

from __future__ import annotations

import pytest
from vmferry_harbour.transport import PontoonTransport

from vmferry.api import Address
from vmferry.testing.transport import TransportConformance


class TestPontoonTransport(TransportConformance):
    """All of the contract."""

    @pytest.fixture
    def transport(self) -> PontoonTransport:
        """The plugin, with its defaults."""
        return PontoonTransport()

    @pytest.fixture
    def listen_address(self) -> Address:
        """A free port of this machine."""
        return Address.parse("pontoon://127.0.0.1:0")
