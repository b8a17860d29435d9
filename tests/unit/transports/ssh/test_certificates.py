"""Who holds the right key gets in, and nobody else."""

import ssl

import pytest

from vmferry_transports.ssh.certificates import OneTime


def handshake(client, server):
    """Do a TLS handshake in memory; raises what either end makes of the other."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname="agent"),
        server.wrap_bio(up, down, server_side=True),
    ]
    done = set()
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    ends[1].write(b"hello")
    assert ends[0].read(5) == b"hello"
    ends[0].write(b"there")
    assert ends[1].read(5) == b"there"
    return ends[0].version()


def test_the_two_that_know_each_other():
    one, two = OneTime(), OneTime()
    client, server = one.context(two.pem, server=False), two.context(one.pem, server=True)
    assert handshake(client, server) == "TLSv1.3"


def test_a_stranger_as_caller():
    one, two, stranger = OneTime(), OneTime(), OneTime()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stranger.context(two.pem, server=False), two.context(one.pem, server=True))


def test_a_stranger_as_agent():
    one, two, stranger = OneTime(), OneTime(), OneTime()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(one.context(two.pem, server=False), stranger.context(one.pem, server=True))


def test_a_caller_without_a_certificate():
    one, two = OneTime(), OneTime()
    client = ssl.create_default_context(cadata=two.pem)
    client.check_hostname = False
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(client, two.context(one.pem, server=True))


def test_what_is_no_certificate():
    with pytest.raises(ssl.SSLError):
        OneTime().context("no certificate", server=True)
