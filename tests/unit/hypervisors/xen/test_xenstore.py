"""The client of xenstored against the protocol served over a dictionary."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from vmferry.errors import HypervisorError
from vmferry_hypervisors.xen.xenstore import XenStore, XenStoreMissing

from .xenstored import FakeXenStored

VALUES = {"/local/domain/0/name": "Domain-0", "/local/domain/4/name": "web1"}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeXenStored]:
    async with FakeXenStored(tmp_path / "socket", dict(VALUES)) as running:
        yield running


async def test_values_are_read_and_written(server: FakeXenStored) -> None:
    async with XenStore(str(server.path)) as store:
        assert await store.read("/local/domain/4/name") == "web1"
        await store.write("/local/domain/4/name", "web2")
        assert await store.get("/local/domain/4/name") == "web2"
        assert list(await store.list("/local/domain")) == ["0", "4"]


async def test_what_is_not_there(server: FakeXenStored) -> None:
    async with XenStore(str(server.path)) as store:
        with pytest.raises(XenStoreMissing, match="/nowhere"):
            await store.read("/nowhere")
        assert await store.get("/nowhere", "else") == "else"
        assert await store.list("/nowhere") == ()
        await store.remove("/nowhere")


async def test_a_watch_fires_at_once_and_at_each_change(server: FakeXenStored) -> None:
    async with XenStore(str(server.path)) as store:
        await store.watch("/local/domain/4")
        assert await store.event() == "/local/domain/4"
        server.change("/local/domain/4/name", "web3")
        assert await store.event() == "/local/domain/4/name"


async def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="xenstored at"):
        async with XenStore(str(tmp_path / "none")):
            pass


async def test_a_server_that_goes_away_is_told(server: FakeXenStored) -> None:
    async with XenStore(str(server.path)) as store:
        await store.read("/local/domain/4/name")
        server.drop()
        with pytest.raises(HypervisorError, match="ended the connection"):
            await store.event()
