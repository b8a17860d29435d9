import asyncio
from random import Random

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import ConnectionLost, LinkError, ProtocolError
from vmferry.simulation.lanes import LinkParameters
from vmferry.simulation.loop import run
from vmferry.simulation.network import Fate, SimNetwork
from vmferry.simulation.process import ProcessDied, SimProcess
from vmferry.simulation.trace import Trace

LIMITS = Limits()


def in_network(body, seed=1, **parameters):
    async def main():
        network = SimNetwork(LinkParameters(**parameters), Random(seed), Trace())
        near, far = SimProcess("a"), SimProcess("b")
        listener = await network.transport(far).listen(Address.parse("sim://b"), limits=LIMITS)
        connecting = network.transport(near).connect(listener.address, lanes=3, limits=LIMITS)
        connection = await connecting
        return await body(network, connection, await listener.accept())

    return run(main(), seed=seed, limit=1000)


async def receive_until_lost(lane):
    heads = []
    try:
        while True:
            heads.append(bytes((await lane.receive()).head))
    except ConnectionLost:
        return heads


def now():
    return asyncio.get_running_loop().time()


def test_frames_arrive_whole_in_order_on_every_lane():
    async def body(network, near, far):
        async def send(lane):
            for n in range(50):
                await near.lanes[lane].send(bytes([lane, n]), bytes([n]) * n)

        async with asyncio.TaskGroup() as group:
            for lane in range(3):
                group.create_task(send(lane))
        for lane in range(3):
            for n in range(50):
                frame = await far.lanes[lane].receive()
                assert (bytes(frame.head), bytes(frame.payload)) == (
                    bytes([lane, n]),
                    bytes([n]) * n,
                )

    in_network(body, jitter=0.01)


def test_bandwidth_is_shared_and_latency_added():
    async def body(network, near, far):
        begin = now()
        for lane in (0, 1):
            await near.lanes[lane].send(b"", bytes(500_000))
        for lane in (0, 1):
            await far.lanes[lane].receive()
        return now() - begin

    assert in_network(body, bandwidth=1e6, latency=0.25, jitter=0) == pytest.approx(1.25)


def test_payload_is_copied_when_sent():
    async def body(network, near, far):
        buffer = bytearray(b"before")
        await near.lanes[0].send(b"", memoryview(buffer))
        buffer[:] = b"after!"
        assert bytes((await far.lanes[0].receive()).payload) == b"before"

    in_network(body)


def test_sender_waits_for_a_slow_receiver():
    async def body(network, near, far):
        sent = []

        async def send():
            for n in range(10):
                await near.lanes[1].send(b"", bytes(1000))
                sent.append(n)

        task = asyncio.create_task(send())
        await asyncio.sleep(10)
        assert len(sent) == 3
        for _ in range(10):
            await far.lanes[1].receive()
        await task

    in_network(body, window=3000)


def test_a_cancelled_send_leaves_the_lane_in_order():
    async def body(network, near, far):
        lane = near.lanes[1]
        await lane.send(b"0", bytes(1000))
        waiting = [asyncio.create_task(lane.send(b"%d" % n, bytes(1000))) for n in (1, 2, 3)]
        await asyncio.sleep(1)
        waiting[1].cancel()
        heads = [bytes((await far.lanes[1].receive()).head) for _ in range(3)]
        assert heads == [b"0", b"1", b"3"]

    in_network(body, window=1000)


def test_close_delivers_everything_and_ends_in_good_order():
    async def body(network, near, far):
        await near.lanes[0].send(b"last")
        await near.close()
        assert bytes((await far.lanes[0].receive()).head) == b"last"
        assert [await lane.receive() for lane in far.lanes] == [None] * 3
        assert await far.lanes[0].receive() is None
        with pytest.raises(ConnectionLost):
            await far.lanes[0].send(b"too late")
        with pytest.raises(ConnectionLost):
            await near.lanes[0].receive()
        await far.close()
        await near.close()

    in_network(body)


def test_a_cut_is_learnt_by_everybody_who_waits():
    async def body(network, near, far):
        async def lost(awaitable):
            with pytest.raises(ConnectionLost):
                await awaitable

        await near.lanes[1].send(b"", bytes(1000))
        async with asyncio.TaskGroup() as group:
            group.create_task(lost(near.lanes[1].send(b"", bytes(1000))))
            group.create_task(lost(near.lanes[0].receive()))
            group.create_task(lost(far.lanes[2].receive()))
            await asyncio.sleep(0.1)
            network.cut()
        await near.close()
        await lost(near.lanes[2].send(b""))

    in_network(body, window=1000)


def test_a_cut_lets_a_beginning_through():
    async def body(network, near, far):
        for n in range(8):
            await near.lanes[1].send(b"%d" % n)
        await asyncio.sleep(0.0004)
        network.cut()
        heads = [int(head) for head in await receive_until_lost(far.lanes[1])]
        assert heads == list(range(len(heads)))
        return len(heads)

    assert len({in_network(body, seed) for seed in range(20)}) > 3


def test_abort_is_learnt_by_both():
    async def body(network, near, far):
        near.abort()
        near.abort()
        with pytest.raises(ConnectionLost):
            await near.lanes[0].receive()
        with pytest.raises(ConnectionLost):
            await far.lanes[0].receive()

    in_network(body)


def test_a_stall_delays_and_loses_nothing():
    async def body(network, near, far):
        await near.lanes[0].send(b"x")
        network.stall(20)
        await near.lanes[0].send(b"y")
        assert [bytes((await far.lanes[0].receive()).head) for _ in "xy"] == [b"x", b"y"]
        assert now() >= 20

    in_network(body)


def test_corruption_changes_one_byte():
    async def body(network, near, far):
        network.tamper = lambda event: Fate.CORRUPT if event.lane else Fate.DELIVER
        await near.lanes[1].send(b"h", bytes(100))
        await near.lanes[0].send(b"h", bytes(100))
        spoilt, good = [bytes((await far.lanes[n].receive()).payload) for n in (1, 0)]
        assert good == bytes(100)
        assert sum(byte != 0 for byte in spoilt) == 1

    in_network(body)


def test_a_head_can_be_garbled_alone():
    async def body(network, near, far):
        network.tamper = lambda event: Fate.GARBLE
        await near.lanes[1].send(b"head", bytes(100))
        frame = await far.lanes[1].receive()
        assert bytes(frame.head) != b"head"
        assert bytes(frame.payload) == bytes(100)

    in_network(body)


def test_a_frame_can_cut_the_connection():
    async def body(network, near, far):
        network.tamper = lambda event: Fate.CUT if network.frames == 2 else Fate.DELIVER
        await near.lanes[0].send(b"1")
        await near.lanes[0].send(b"2")
        assert await receive_until_lost(far.lanes[0]) in ([], [b"1"], [b"1", b"2"])

    in_network(body)


def test_connecting_is_refused_for_a_while():
    async def body(network, near, far):
        transport = network.transport(near.process)
        listener = await network.transport(far.process).listen(
            Address.parse("sim://b:9"), limits=LIMITS
        )
        network.refuse(5)
        with pytest.raises(LinkError):
            await transport.connect(listener.address, lanes=2, limits=LIMITS)
        await asyncio.sleep(5)
        await transport.connect(listener.address, lanes=2, limits=LIMITS)
        await listener.accept()
        await listener.close()
        with pytest.raises(LinkError):
            await transport.connect(listener.address, lanes=2, limits=LIMITS)
        with pytest.raises(ConnectionLost):
            await listener.accept()

    in_network(body)


def test_a_killed_process_loses_its_connections():
    async def body(network, near, far):
        near.process.kill()
        with pytest.raises(ConnectionLost):
            await far.lanes[0].receive()
        with pytest.raises(ProcessDied):
            await near.lanes[0].send(b"")

    in_network(body)


def test_frames_beyond_the_receivers_limits_end_the_connection():
    async def body(network, near, far):
        far.limits = Limits(payload=10)
        await near.lanes[0].send(b"", bytes(11))
        with pytest.raises(ProtocolError):
            await far.lanes[0].receive()
        with pytest.raises(ConnectionLost):
            await near.lanes[0].receive()
        with pytest.raises(ValueError, match="limits"):
            await far.lanes[0].send(b"", bytes(11))

    in_network(body)


def test_one_seed_gives_one_trace():
    def trace(seed):
        async def body(network, near, far):
            for n in range(30):
                await near.lanes[n % 3].send(b"head", bytes(n * 100))
                await far.lanes[n % 3].receive()
            return network._trace.digest()

        return in_network(body, seed)

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)
