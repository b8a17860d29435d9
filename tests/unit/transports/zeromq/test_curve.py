"""CURVE: who is let in, what both ends are told when somebody is not, and what files may be."""

import asyncio

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import InputError, LinkError
from vmferry_transports.zeromq import ZeromqOptions, ZeromqTransport, keys
from vmferry_transports.zeromq.__main__ import main

LOCAL = Address.parse("zeromq://127.0.0.1")


async def attempt(here, there):
    """The error of a connect that must fail."""
    listener = await ZeromqTransport(there).listen(LOCAL, limits=Limits())
    try:
        with pytest.raises(LinkError) as caught:
            await ZeromqTransport(here).connect(listener.address, lanes=2, limits=Limits())
        await asyncio.sleep(0.2)
    finally:
        await listener.close()
    assert str(caught.value).startswith(f"{listener.address} ")
    return str(caught.value)


async def test_both_ends_know_each_other(curve, connect_pair):
    async with connect_pair(curve.host("alpha"), curve.listener()) as (near, far):
        assert (near.peer.identity, far.peer.identity) == ("listener", "alpha")
        assert near.peer.encrypted
        assert far.peer.encrypted
        await near.lanes[1].send(b"head", bytes(1 << 20))
        assert len((await far.lanes[1].receive()).payload) == 1 << 20


async def test_a_key_that_is_not_allowed(curve, caplog):
    error = await attempt(curve.host("stranger", allowed=False), curve.listener())
    assert "refuses this host's key; put its public key into the folder curve_allow" in error
    assert "is not in curve_allow" in caplog.text


async def test_a_key_that_is_allowed_later(curve):
    listener = await ZeromqTransport(curve.listener()).listen(LOCAL, limits=Limits())
    near = await ZeromqTransport(curve.host("new")).connect(
        listener.address, lanes=2, limits=Limits()
    )
    near.abort()
    await near.close()
    await listener.close()


async def test_another_listener_than_expected(curve, tmp_path):
    other, _ = keys.make(tmp_path, "other")
    options = curve.host("alpha", server=other, connect_timeout=3)
    assert "curve_server_key the listener's key" in await attempt(options, curve.listener())


async def test_a_listener_without_curve(curve):
    assert "CURVE" in await attempt(curve.host("alpha", connect_timeout=3), ZeromqOptions())


async def test_a_connecting_end_without_curve(curve, caplog):
    error = await attempt(ZeromqOptions(connect_timeout=3), curve.listener())
    assert "CURVE must be on at both ends" in error
    assert "a handshake failed: " in caplog.text


async def test_a_broken_allow_list_lets_nobody_in(curve, caplog):
    listener = await ZeromqTransport(curve.listener()).listen(LOCAL, limits=Limits())
    options = curve.host("alpha")
    (curve.folder / "allowed" / "bad.key").write_text("no key")
    with pytest.raises(LinkError, match="refuses this host's key"):
        await ZeromqTransport(options).connect(listener.address, lanes=2, limits=Limits())
    await listener.close()
    assert "nobody is let in" in caplog.text


async def test_listening_to_others_is_allowed_with_curve(curve):
    address = Address.parse("zeromq://0.0.0.0")
    listener = await ZeromqTransport(curve.listener()).listen(address, limits=Limits())
    await listener.close()


async def test_listening_needs_an_allow_list(curve):
    options = ZeromqOptions(curve_key=str(curve.secret))
    with pytest.raises(InputError, match="curve_allow is missing"):
        await ZeromqTransport(options).listen(LOCAL, limits=Limits())


async def test_connecting_needs_the_listeners_key(curve):
    options = ZeromqOptions(curve_key=str(curve.secret))
    with pytest.raises(InputError, match="curve_server_key is missing"):
        await ZeromqTransport(options).connect(
            Address.parse("zeromq://127.0.0.1:1"), lanes=2, limits=Limits()
        )


@pytest.mark.parametrize("given", ["curve_server_key", "curve_allow"])
async def test_half_configured(given):
    with pytest.raises(InputError, match="CURVE needs curve_key"):
        await ZeromqTransport(ZeromqOptions(**{given: "x"})).listen(LOCAL, limits=Limits())


class TestFiles:
    def test_a_secret_that_others_may_read(self, curve):
        assert keys.secret(str(curve.secret)).public
        curve.secret.chmod(0o640)
        with pytest.raises(InputError, match="has mode 640; chmod 600 it"):
            keys.secret(str(curve.secret))

    def test_a_public_key_that_others_may_change(self, curve):
        curve.public.chmod(0o664)
        with pytest.raises(InputError, match="has mode 664; chmod go-w it"):
            keys.public(str(curve.public))

    def test_a_folder_that_others_may_change(self, curve):
        (curve.folder / "allowed").chmod(0o777)
        with pytest.raises(InputError, match="has mode 777"):
            keys.AllowList(str(curve.folder / "allowed"))

    def test_a_public_key_for_a_secret_one(self, curve):
        curve.public.chmod(0o600)
        with pytest.raises(InputError, match=r"no secret key; give NAME\.key_secret"):
            keys.secret(str(curve.public))

    @pytest.mark.parametrize(
        "text", ["", "no key", 'public-key = "short"', 'public-key = "' + "~" * 40 + '"']
    )
    def test_a_file_that_is_none(self, tmp_path, text):
        file = tmp_path / "a.key"
        file.write_text(text)
        with pytest.raises(InputError, match="is no key file of ZeroMQ"):
            keys.public(str(file))

    def test_a_file_that_is_missing(self, tmp_path):
        with pytest.raises(InputError, match="No such file"):
            keys.public(str(tmp_path / "a.key"))

    def test_names_are_those_of_the_files(self, curve):
        curve.host("alpha")
        curve.host("beta")
        allowed = keys.AllowList(str(curve.folder / "allowed")).read()
        assert sorted(allowed.values()) == ["alpha", "beta"]


class TestMaking:
    def test_files_are_made_once_and_well(self, tmp_path, capsys):
        assert main([str(tmp_path), "here"]) is None
        assert "here.key_secret: keep it here (curve_key)" in capsys.readouterr().out
        assert (tmp_path / "here.key_secret").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "here.key").stat().st_mode & 0o777 == 0o644
        pair = keys.secret(str(tmp_path / "here.key_secret"))
        assert pair.public == keys.public(str(tmp_path / "here.key"))
        assert "exists; keys are not overwritten" in main([str(tmp_path), "here"])

    def test_where_nothing_can_be_written(self, tmp_path):
        assert "no keys written" in main([str(tmp_path / "missing"), "here"])

    def test_without_arguments(self):
        assert "FOLDER NAME" in main([])
