"""TLS: who is let in, and what both ends are told when somebody is not."""

import asyncio
import contextlib
import datetime
import re
import ssl

import pytest
import trustme

from vmferry.api.transport import Address, Limits
from vmferry.errors import InputError, LinkError
from vmferry_transports.tcp import TcpOptions, TcpTransport, sockets, tls
from vmferry_transports.tcp.greeting import Greeting
from vmferry_transports.tcp.opening import TlsOpening

LOCAL = Address.parse("tcp://127.0.0.1")


class Site:
    """An authority and the certificates it has issued, as files."""

    def __init__(self, folder, name):
        self.folder, self.name, self.authority = folder, name, trustme.CA()
        self.ca = str(folder / f"{name}-ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)

    def issue(self, *names, **more):
        leaf = self.authority.issue_cert(*names, **more)
        path = str(self.folder / f"{self.name}-{len(list(self.folder.iterdir()))}.pem")
        leaf.private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def options(self, leaf=None, ca=None, **more):
        leaf = leaf or self.issue("127.0.0.1", common_name="host-1")
        more.setdefault("handshake_timeout", 3)
        return TcpOptions(tls_cert=leaf, tls_key=leaf, tls_ca=ca or self.ca, **more)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, "ours")


@pytest.fixture
def other(tmp_path):
    return Site(tmp_path, "theirs")


async def attempt(here, there):
    """The error of a connect that must fail."""
    listener = await TcpTransport(there).listen(LOCAL, limits=Limits())
    try:
        with pytest.raises(LinkError) as caught:
            await TcpTransport(here).connect(listener.address, lanes=2, limits=Limits())
        await asyncio.sleep(0.1)
    finally:
        await listener.close()
    assert str(caught.value).startswith(f"{listener.address}: ")
    return str(caught.value)


async def test_both_ends_know_each_other(site, connect_pair):
    here = site.options(site.issue("127.0.0.1", common_name="alpha"))
    there = site.options(site.issue("127.0.0.1"))
    async with connect_pair(here, there) as (near, far):
        assert far.peer.identity == "alpha"
        assert near.peer.identity == "127.0.0.1"
        assert near.peer.encrypted
        assert far.peer.encrypted
        assert near.lanes[0]._link._tls.version() == "TLSv1.3"


@pytest.mark.parametrize("name", ["*", "other.example"])
async def test_another_name_when_it_is_expected(site, connect_pair, name):
    there = site.options(site.issue("other.example"))
    async with connect_pair(site.options(tls_name=name), there) as (near, _):
        assert near.peer.identity == "other.example"


@pytest.mark.parametrize("name", ["alpha", "alpha.example"])
async def test_who_is_on_the_list_is_let_in(site, connect_pair, name):
    here = site.options(site.issue("alpha.example", common_name="alpha"))
    async with connect_pair(here, site.options(allow=("someone", name))) as (_, far):
        assert far.peer.identity == "alpha"


async def test_who_is_not_on_the_list_is_told(site, caplog):
    here = site.options(site.issue("beta.example", common_name="beta"))
    error = await attempt(here, site.options(allow=("alpha",)))
    assert "does not let this host's certificate in; add its name to allow there" in error
    assert "refused: not_allowed (certificate of beta, beta.example)" in caplog.text


async def test_a_list_without_tls_is_refused():
    with pytest.raises(InputError, match="allow names certificates; it needs tls_cert"):
        await TcpTransport(TcpOptions(allow=("alpha",))).listen(LOCAL, limits=Limits())


async def test_listening_to_others_is_allowed_with_tls(site):
    listener = await TcpTransport(site.options()).listen(
        Address.parse("tcp://0.0.0.0"), limits=Limits()
    )
    await listener.close()


async def test_listener_signed_by_somebody_else(site, other, caplog):
    error = await attempt(site.options(), other.options(ca=site.ca))
    assert "the peer's certificate is not signed by an authority in tls_ca here" in error
    assert "refuses this host's certificate (tls_cert): no authority in its tls_ca" in caplog.text


async def test_connecting_end_signed_by_somebody_else(site, other, caplog):
    error = await attempt(other.options(ca=site.ca), site.options())
    assert "refuses this host's certificate (tls_cert): no authority in its tls_ca" in error
    assert "not signed by an authority in tls_ca here" in caplog.text


async def test_listener_expired(site, caplog):
    past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    error = await attempt(site.options(), site.options(site.issue("127.0.0.1", not_after=past)))
    assert "the peer's certificate has expired; renew tls_cert there" in error
    assert "it has expired or a clock is wrong" in caplog.text


async def test_connecting_end_expired(site, caplog):
    past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    error = await attempt(site.options(site.issue("127.0.0.1", not_after=past)), site.options())
    assert "it has expired or a clock is wrong" in error
    assert "the peer's certificate has expired" in caplog.text


async def test_wrong_name(site, caplog):
    error = await attempt(site.options(), site.options(site.issue("other.example")))
    assert "not for '127.0.0.1'; connect by the name it carries, or set tls_name to it" in error
    assert "refuses this host's certificate (tls_cert): wrong name" in caplog.text


async def test_listener_without_tls(site, caplog):
    error = await attempt(site.options(), TcpOptions())
    assert "speaks no TLS; set tls_cert, tls_key and tls_ca there too, or nowhere" in error
    assert "speaks TLS, which is off here" in caplog.text


async def test_connecting_end_without_tls(site, caplog):
    error = await attempt(TcpOptions(), site.options())
    assert "wants TLS; set tls_cert, tls_key and tls_ca here too" in error
    assert "speaks no TLS, which is on here" in caplog.text


async def by_hand(site, **versions):
    """Connect with a context of its own; return what the listener makes of it."""
    context = ssl.create_default_context(cafile=site.ca)
    for key, value in versions.items():
        setattr(context, key, value)
    listener = await TcpTransport(site.options()).listen(LOCAL, limits=Limits())
    try:
        where = ("127.0.0.1", listener.address.port)
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(*where, ssl=context)
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0.05)
    finally:
        await listener.close()


async def test_no_client_certificate(site, caplog):
    await by_hand(site)
    assert "showed no certificate; set tls_cert and tls_key there" in caplog.text


async def test_an_old_version(site, caplog):
    await by_hand(site, maximum_version=ssl.TLSVersion.TLSv1_2)
    assert "does not speak TLS 1.3" in caplog.text


async def test_noise_at_a_tls_listener(site, caplog):
    listener = await TcpTransport(site.options()).listen(LOCAL, limits=Limits())
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.address.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await reader.read()
    writer.close()
    await writer.wait_closed()
    await listener.close()
    assert "does not speak TLS but HTTP; is the port right?" in caplog.text


async def test_a_listener_that_hangs_up(site):
    async def hang_up(_, writer):
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        url = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(LinkError, match=r"during the TLS handshake|handshake failed"):
            await TcpTransport(site.options()).connect(Address.parse(url), lanes=2, limits=Limits())


async def test_lanes_of_one_session_have_one_identity(site):
    listener = await TcpTransport(site.options()).listen(LOCAL, limits=Limits())
    lanes = []
    for number, name in enumerate(("alpha", "beta")):
        options = site.options(site.issue("127.0.0.1", common_name=name))
        sock = await sockets.connect(listener.address, options)
        lanes.append(TlsOpening(sock, tls.context(options, server=False), name="127.0.0.1"))
        await lanes[-1].handshake()
        await lanes[-1].send_greeting(Greeting(session=bytes(16), lane=number, lanes=2))
    assert (await lanes[0].receive_greeting()).refusal == 0
    assert (await lanes[1].receive_greeting()).refusal != 0
    for lane in lanes:
        lane.close()
    await listener.close()


@pytest.mark.parametrize("given", ["tls_cert", "tls_key", "tls_ca"])
async def test_half_configured(given):
    with pytest.raises(InputError, match=r"TLS needs tls_cert, .* missing"):
        await TcpTransport(TcpOptions(**{given: "file"})).listen(LOCAL, limits=Limits())


@pytest.mark.parametrize(
    ("broken", "content", "text"),
    [
        ("tls_ca", None, "tls_ca .*: No such file"),
        ("tls_ca", "no PEM", "tls_ca .* cannot be used"),
        ("tls_cert", None, "tls_cert .*: No such file"),
        ("tls_key", "no PEM", "with tls_key .* cannot be used"),
    ],
)
async def test_files_that_cannot_be_used(site, tmp_path, broken, content, text):
    leaf = site.issue("127.0.0.1")
    files = {"tls_cert": leaf, "tls_key": leaf, "tls_ca": site.ca, broken: str(tmp_path / "bad")}
    if content is not None:
        (tmp_path / "bad").write_text(content)
    with pytest.raises(InputError, match=text):
        await TcpTransport(TcpOptions(**files)).listen(LOCAL, limits=Limits())


async def test_a_key_of_another_certificate(site):
    files = {"tls_cert": site.issue("a"), "tls_key": site.issue("b"), "tls_ca": site.ca}
    with pytest.raises(InputError, match="key values mismatch"):
        await TcpTransport(TcpOptions(**files)).listen(LOCAL, limits=Limits())


async def test_four_lanes_both_ways_at_once_do_not_stall(site, connect_pair):
    """200 MiB in all; two threads use each TLS object, and neither may wait for the other."""
    pieces, size = 25, 1 << 20

    async def send(lane):
        for number in range(pieces):
            await lane.send(b"%d" % number, bytes([number]) * size)

    async def receive(lane):
        for number in range(pieces):
            frame = await lane.receive()
            assert bytes(frame.head) == b"%d" % number
            assert bytes(frame.payload) == bytes([number]) * size

    async with (
        connect_pair(site.options(), site.options(), lanes=4) as (near, far),
        asyncio.timeout(60),
        asyncio.TaskGroup() as group,
    ):
        for lane in (*near.lanes, *far.lanes):
            group.create_task(send(lane))
            group.create_task(receive(lane))


async def test_damaged_records_end_the_connection(site, connect_pair):
    async with connect_pair(site.options(), site.options()) as (near, far):
        near.lanes[1]._link._sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(LinkError, match=re.compile("lane 1: lost: ", re.IGNORECASE)):
            await far.lanes[1].receive()
