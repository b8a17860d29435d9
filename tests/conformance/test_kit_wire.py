"""The transport kit fails transports that mistake what comes over a damaged wire."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import msgspec
import pytest

from vmferry.api import Address, Frame
from vmferry.cli.scaffold.samples.transport import (
    LoopbackConnection,
    LoopbackLane,
    LoopbackListener,
    LoopbackTransport,
)
from vmferry.errors import ConnectionLost
from vmferry.testing.transport import TransportConformance
from vmferry.testing.transport_pair import open_pair

ADDRESS = Address.parse("loopback://127.0.0.1:0")


class TakesACutForTheEnd(LoopbackLane):
    async def _read(self):
        try:
            return await super()._read()
        except ConnectionLost:
            return None


class DeliversHalfAFrame(LoopbackLane):
    async def _body(self, head, payload):
        try:
            first = await self._reader.readexactly(head)
            return Frame(first, await self._reader.readexactly(payload))
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                raise
            return Frame(first, error.partial)


class WaitsForEver(LoopbackLane):
    async def _read(self):
        try:
            return await super()._read()
        except ConnectionLost:
            await asyncio.Event().wait()


class AllocatesWhatItIsTold(LoopbackLane):
    async def _body(self, head, payload):
        self._limits.allocate(payload)
        return await super()._body(head, payload)


class RaisesWhatItLikes(LoopbackLane):
    async def _body(self, head, payload):
        if head > self._limits.head:
            raise KeyError(head)
        return await super()._body(head, payload)


class SaysItIsEncrypted(LoopbackConnection):
    @property
    def peer(self):
        return msgspec.structs.replace(super().peer, encrypted=True)


class OneByOne(LoopbackListener):
    """A stranger who says nothing is waited for."""

    async def _greet(self, reader, writer):
        turn = self.__dict__.setdefault("turn", asyncio.Lock())
        async with turn:
            await super()._greet(reader, writer)


class EndsWithAStranger(LoopbackListener):
    async def _greet(self, reader, writer):
        greeted = len(self._parts)
        await super()._greet(reader, writer)
        if writer.transport.is_closing() and len(self._parts) == greeted:
            await self.close()


class SharesItsAddress(LoopbackListener):
    async def start(self, address):
        self._server = await asyncio.start_server(
            self._arrived, address.host, address.port, reuse_port=True
        )
        port = self._server.sockets[0].getsockname()[1]
        self._address = msgspec.structs.replace(address, port=port)


@pytest.fixture
def patched(monkeypatch):
    """Put a part into the place of the sample's."""

    def patch(part: type[Any]) -> None:
        for base in (LoopbackLane, LoopbackConnection, LoopbackListener):
            if issubclass(part, base):
                module = "vmferry.cli.scaffold.samples.transport"
                monkeypatch.setattr(f"{module}.{base.__name__}", part)

    return patch


class Impatient(TransportConformance):
    patience = 1.0
    pause = 0.05


FAULTS: list[tuple[type[Any], str, tuple[Any, ...]]] = [
    (TakesACutForTheEnd, "a_stream_cut_short_is_a_loss", (0.0,)),
    (TakesACutForTheEnd, "a_stream_cut_short_is_a_loss", (0.5,)),
    (DeliversHalfAFrame, "a_stream_cut_short_is_a_loss", (0.5,)),
    (WaitsForEver, "a_stream_cut_short_is_a_loss", (0.5,)),
    (AllocatesWhatItIsTold, "damaged_bytes_do_no_harm", (4,)),
    (RaisesWhatItLikes, "damaged_bytes_do_no_harm", (0,)),
    (SaysItIsEncrypted, "damaged_bytes_do_no_harm", (5000,)),
    (OneByOne, "strangers_hold_up_nobody", (b"",)),
    (EndsWithAStranger, "strangers_hold_up_nobody", (b"GET / HTTP/1.1\r\n\r\n" + bytes(64),)),
    (SharesItsAddress, "a_taken_address_is_refused", ()),
]


async def run(kit: TransportConformance, check: str, arguments: tuple[Any, ...]) -> None:
    transport, test = LoopbackTransport(), getattr(kit, f"test_{check}")
    if check != "a_taken_address_is_refused":
        await test(transport, ADDRESS, *arguments)
        return
    async with open_pair(transport, ADDRESS, kit.patience) as pair:
        await test(pair, transport)


@pytest.fixture
def rubbish():
    """What a broken transport forgets to close must not be blamed on a later test."""
    yield
    gc.collect()


@pytest.mark.mutant
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("rubbish")
@pytest.mark.parametrize(
    ("part", "check", "arguments"), FAULTS, ids=lambda v: getattr(v, "__name__", "")
)
async def test_a_broken_transport_is_failed(part, check, arguments, patched):
    patched(part)
    with pytest.raises(pytest.fail.Exception, match=r"vmferry\.api\.\w+ says: "):
        await run(Impatient(), check, arguments)


@pytest.mark.parametrize(("check", "arguments"), sorted({fault[1:] for fault in FAULTS}, key=str))
async def test_the_sample_is_passed(check, arguments):
    await run(TransportConformance(), check, arguments)


async def test_without_a_wire_it_is_skipped_aloud():
    from vmferry_transports.memory import MemoryTransport

    with pytest.raises(pytest.skip.Exception, match=r"TransportConformance\.relayed gives None"):
        await TransportConformance().test_damaged_bytes_do_no_harm(
            MemoryTransport(), Address.parse("memory://"), 0
        )
