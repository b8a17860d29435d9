"""Streams that break under the ``zeromq`` transport."""

import asyncio

import pytest
import zmq

from vmferry.api.transport import Address
from vmferry_transports.zeromq import ZeromqOptions


class Proxy:
    """Passes bytes on between a port of its own and another, and can cut its streams."""

    def __init__(self):
        self.writers, self.server, self.refuses = [], None, False

    async def __call__(self, address):
        self.target = address.port
        self.server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return Address.parse(f"zeromq://127.0.0.1:{self.server.sockets[0].getsockname()[1]}")

    async def _accepted(self, reader, writer):
        there = await asyncio.open_connection("127.0.0.1", self.target)
        self.writers += [writer, there[1]]
        await asyncio.gather(self._pass(reader, there[1]), self._pass(there[0], writer))

    async def _pass(self, reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def cut(self, *numbers):
        """Cut the streams of these lanes, all by default; what connects anew is served."""
        for number in numbers or range(len(self.writers) // 2):
            for writer in self.writers[2 * number : 2 * number + 2]:
                writer.transport.abort()

    async def close(self):
        self.server.close()
        self.cut()
        await asyncio.sleep(0)


@pytest.fixture
async def proxy():
    proxy = Proxy()
    yield proxy
    await proxy.close()


class TestBreaks:
    """A stream that ZeroMQ would replace is a lost connection, at both ends."""

    @pytest.mark.parametrize("lanes", [(), (1,)])
    async def test_a_cut_stream_is_reported_to_both_ends(self, connect_pair, proxy, lanes, lost):
        async with connect_pair(through=proxy) as (near, far):
            await near.lanes[1].send(b"before")
            assert bytes((await far.lanes[1].receive()).head) == b"before"
            proxy.cut(*lanes)
            for lane in (*near.lanes, *far.lanes):
                await lost(lane.receive())
            for lane in (*near.lanes, *far.lanes):
                await lost(lane.send(b"late"))

    async def test_no_frame_is_skipped_before_the_loss(self, connect_pair, proxy, lost):
        async with connect_pair(through=proxy) as (near, far):
            seen = []

            async def receive():
                while True:
                    seen.append(int(bytes((await far.lanes[1].receive()).head)))
                    if len(seen) == 20:
                        proxy.cut()

            async def send():
                for number in range(100_000):
                    await near.lanes[1].send(b"%d" % number, bytes(20_000))

            receiving = asyncio.create_task(lost(receive()))
            await lost(send())
            await receiving
            assert seen == list(range(len(seen)))

    async def test_a_stream_of_zeromq_that_comes_back_is_reset(
        self, connect_pair, monkeypatch, lost
    ):
        """What a socket that reconnects would go on with is told that it is a stranger."""
        async with connect_pair() as (near, far):
            context = zmq.Context()
            sock = context.socket(zmq.DEALER)
            try:
                sock.connect(near.peer.address.replace("zeromq", "tcp"))
                dealer = near.lanes[1]._wire
                kept = []
                monkeypatch.setattr(dealer._port, "send", kept.append)
                await near.lanes[1].send(b"over another stream")
                await asyncio.to_thread(sock.send_multipart, kept[0])
                answer = await asyncio.to_thread(sock.recv)
                assert answer[2] == 7  # RESET
            finally:
                sock.close(0)
                context.term()
            monkeypatch.undo()
            await near.lanes[1].send(b"after a gap")
            assert "message 1 came, not 0" in await lost(far.lanes[1].receive())
            await lost(near.lanes[1].receive())

    async def test_a_silent_peer_is_lost(self, connect_pair, proxy, monkeypatch, lost):
        """A network that swallows everything is noticed by what is missing."""
        options = ZeromqOptions(heartbeat=0.2, heartbeat_timeout=1.0)
        async with connect_pair(options, options, through=proxy) as (near, far):
            for writer in proxy.writers:
                monkeypatch.setattr(writer, "write", lambda data: None)
            await lost(near.lanes[0].receive())
            await lost(far.lanes[0].receive())
