"""The transport keeps its contract."""

from __future__ import annotations

import pytest

from vmferry.api import Address
from vmferry.cli.scaffold.samples.transport import LoopbackTransport
from vmferry.testing.transport import TransportConformance


class TestLoopbackTransport(TransportConformance):
    """All of the contract."""

    @pytest.fixture
    def transport(self) -> LoopbackTransport:
        """The plugin, with its defaults."""
        return LoopbackTransport()

    @pytest.fixture
    def listen_address(self) -> Address:
        """A free port of this machine."""
        return Address.parse("loopback://127.0.0.1:0")
