"""ZeroMQ keeps the contract of a transport, in the clear and with CURVE."""

import pytest

from vmferry.api.transport import Address
from vmferry.testing.transport import TransportConformance
from vmferry_transports.zeromq import ZeromqOptions, ZeromqTransport, keys


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    public, secret = keys.make(folder, "host")
    return ZeromqOptions(
        curve_key=str(secret), curve_server_key=str(public), curve_allow=str(folder)
    )


class TestZeromq(TransportConformance):
    @pytest.fixture
    def transport(self):
        return ZeromqTransport()

    @pytest.fixture
    def listen_address(self):
        return Address.parse("zeromq://127.0.0.1")


class TestZeromqWithCurve(TransportConformance):
    @pytest.fixture
    def transport(self, options):
        return ZeromqTransport(options)

    @pytest.fixture
    def listen_address(self):
        return Address.parse("zeromq://127.0.0.1")
