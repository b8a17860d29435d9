import asyncio

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import ConnectionLost, InputError, LinkError, ProtocolError
from vmferry_transports.memory import MemoryTransport


async def connected(here, there):
    transport = MemoryTransport()
    listener = await transport.listen(Address.parse("memory://name"), limits=there)
    near = await transport.connect(listener.address, lanes=2, limits=here)
    return near, await listener.accept(), listener


async def test_a_frame_above_the_receivers_limits_ends_the_lane():
    near, far, _ = await connected(Limits(), Limits(payload=10))
    await near.lanes[1].send(b"", bytes(11))
    with pytest.raises(ProtocolError, match=r"0\+11 bytes exceeds"):
        await far.lanes[1].receive()
    with pytest.raises(ConnectionLost):
        await near.lanes[1].send(b"")


async def test_nine_frames_do_not_fit():
    near, far, _ = await connected(Limits(), Limits())
    for _ in range(8):
        await near.lanes[1].send(b"x")
    ninth = asyncio.ensure_future(near.lanes[1].send(b"x"))
    await asyncio.sleep(0.01)
    assert not ninth.done()
    await far.lanes[1].receive()
    await ninth


async def test_a_waiting_send_is_refused_when_the_connection_closes():
    near, _, _ = await connected(Limits(), Limits())
    sends = [asyncio.ensure_future(near.lanes[1].send(b"x")) for _ in range(9)]
    await asyncio.sleep(0)
    await near.close()
    with pytest.raises(ConnectionLost):
        await sends[8]


async def test_names_are_taken_once_and_free_after_close():
    transport = MemoryTransport()
    address = Address.parse("memory://name")
    listener = await transport.listen(address, limits=Limits())
    with pytest.raises(InputError, match="memory://name already"):
        await transport.listen(address, limits=Limits())
    await listener.close()
    await (await transport.listen(address, limits=Limits())).close()


async def test_an_empty_name_takes_a_free_one():
    transport = MemoryTransport()
    first = await transport.listen(Address.parse("memory://"), limits=Limits())
    second = await transport.listen(Address.parse("memory://"), limits=Limits())
    assert str(first.address) != str(second.address)


def test_names_of_another_loop_are_not_seen():
    transport = MemoryTransport()

    async def listen():
        await transport.listen(Address.parse("memory://name"), limits=Limits())

    asyncio.run(listen())
    asyncio.run(listen())


async def test_closing_the_listener_aborts_what_nobody_accepted(caplog):
    transport = MemoryTransport()
    listener = await transport.listen(Address.parse("memory://name"), limits=Limits())
    near = await transport.connect(listener.address, lanes=2, limits=Limits())
    await listener.close()
    with pytest.raises(ConnectionLost):
        await near.lanes[0].receive()
    assert "nobody accepted" in caplog.text


@pytest.mark.parametrize("lanes", [0, 1])
async def test_a_connection_needs_two_lanes(lanes):
    with pytest.raises(InputError, match="at least 2 lanes"):
        await MemoryTransport().connect(
            Address.parse("memory://name"), lanes=lanes, limits=Limits()
        )


async def test_more_lanes_than_the_listener_takes():
    transport = MemoryTransport()
    listener = await transport.listen(Address.parse("memory://name"), limits=Limits(lanes=3))
    with pytest.raises(LinkError, match="at most 3 lanes"):
        await transport.connect(listener.address, lanes=4, limits=Limits())


async def test_an_address_of_another_transport_is_refused():
    with pytest.raises(InputError, match="memory://NAME"):
        await MemoryTransport().listen(Address.parse("tcp://host:1"), limits=Limits())
