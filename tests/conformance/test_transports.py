"""The transports in tree keep the contract."""

import sys

import msgspec
import pytest
import trustme

from vmferry.api.transport import Address
from vmferry.testing.transport import TransportConformance
from vmferry_transports.memory import MemoryTransport
from vmferry_transports.ssh import SshOptions, SshTransport
from vmferry_transports.tcp import TcpOptions, TcpTransport


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1", common_name="here")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf.private_key_and_cert_chain_pem.write_to_path(folder / "leaf.pem")
    return folder


class TestMemory(TransportConformance):
    @pytest.fixture
    def transport(self):
        return MemoryTransport()

    @pytest.fixture
    def listen_address(self):
        return Address.parse("memory://here")


class TestTcp(TransportConformance):
    @pytest.fixture
    def transport(self):
        return TcpTransport()

    @pytest.fixture
    def listen_address(self):
        return Address.parse("tcp://127.0.0.1")


class TestTcpWithTls(TransportConformance):
    @pytest.fixture
    def transport(self, files):
        leaf = str(files / "leaf.pem")
        return TcpTransport(TcpOptions(tls_cert=leaf, tls_key=leaf, tls_ca=str(files / "ca.pem")))

    @pytest.fixture
    def listen_address(self):
        return Address.parse("tcp://127.0.0.1")


FAKE_SSH = """
import os, socket, sys, threading
if "-G" in sys.argv:
    sys.exit(print("hostname", sys.argv[-1]))
agent = socket.socket(socket.AF_UNIX)
agent.connect(sys.argv[-1].split()[0])
agent.sendall(b"{}" + bytes([10]))
def up():
    try:
        while data := os.read(0, 1 << 18):
            agent.sendall(data)
        agent.shutdown(socket.SHUT_WR)
    except OSError:
        pass
threading.Thread(target=up, daemon=True).start()
try:
    while data := agent.recv(1 << 18):
        while data:
            data = data[os.write(1, data):]
except OSError:
    pass
"""
"""Takes the place of ssh, of the login and of ``migrate stdio``."""


class Nearby(SshTransport):
    """Its agent is at the other end of a program that goes nowhere else."""

    async def connect(self, address, *, lanes, limits):
        options = msgspec.structs.replace(self.options, remote_command=address.path)
        there = msgspec.structs.replace(address, host="127.0.0.1", path="")
        return await SshTransport(options).connect(there, lanes=lanes, limits=limits)


@pytest.fixture(params=["ssh", "direct"])
def nearby(request, tmp_path):
    program = tmp_path / "ssh.py"
    program.write_text(FAKE_SSH)
    return Nearby(SshOptions(ssh_command=f"{sys.executable} -IS {program}", bulk=request.param))


class TestSsh(TransportConformance):
    @pytest.fixture
    def transport(self, nearby):
        return nearby

    @pytest.fixture
    def listen_address(self, tmp_path):
        return Address.parse(f"ssh://{tmp_path}/agent.sock")
