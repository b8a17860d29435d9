"""Both ends of a migration with programs that speak as xl does: who says what, and when."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from vmferry.api.guest import ArrivingDisk, Disk
from vmferry.dirtymap import DirtyMap
from vmferry.errors import ConnectionLost, GuestStopped, HypervisorError, VmferryError
from vmferry.testing.streams import stream_pair
from vmferry_hypervisors.xen import arrival as arrival_module
from vmferry_hypervisors.xen import departure as departure_module
from vmferry_hypervisors.xen import leaving, recovery, suspension
from vmferry_hypervisors.xen.arrival import XenArrival
from vmferry_hypervisors.xen.config import DomainConfig
from vmferry_hypervisors.xen.departure import XenDeparture
from vmferry_hypervisors.xen.libxl import SUSPENDED, DomainState
from vmferry_hypervisors.xen.options import XenOptions
from vmferry_hypervisors.xen.recovery import RecoveredDeparture

from .xenstored import FakeXenStored

DOMAIN = {
    "c_info": {"name": "web1", "uuid": "u-1", "type": "pvh"},
    "b_info": {"max_vcpus": 1, "max_memkb": 131072},
    "disks": [{"pdev_path": "/a.raw", "vdev": "xvda", "format": "raw"}],
}
SHUTDOWN = "/local/domain/4/control/shutdown"
NAME = "/local/domain/4/name"


class Device:
    """Stands for the devices of a disk; notes what is done with them."""

    def __init__(self, arriving: ArrivingDisk, most: int) -> None:
        self.path = f"/dev/mapper/vmferry-{arriving.disk.name}"
        self.done: list[str] = []

    async def make(self) -> None:
        self.done.append("make")

    async def show(self, pending: DirtyMap) -> None:
        self.done.append("show")

    async def pivot(self) -> None:
        self.done.append("pivot")

    async def remove(self) -> None:
        self.done.append("remove")


class Stage:
    """A source with domain 4, a destination, and the programs that play xl."""

    def __init__(self, folder: Path, store: FakeXenStored) -> None:
        self.folder, self.store = folder, store
        self.options = XenOptions(xenstore=str(store.path), timeout=120)
        self.config = DomainConfig(DOMAIN)
        self.poweroff = False
        self.ends: list[Callable[[], object]] = []

    def has(self, word: str) -> bool:
        return (self.folder / word).exists()

    async def comes(self, word: str) -> None:
        async with asyncio.timeout(120):
            while not self.has(word):  # noqa: ASYNC110 - another program makes the file
                await asyncio.sleep(0.01)

    async def state(self, domid: int) -> DomainState | None:
        if self.has("destroyed"):
            return None
        if self.poweroff:
            return DomainState(True, 0, False, False)
        suspended = self.has("suspended")
        return DomainState(suspended, SUSPENDED if suspended else -1, False, False)

    async def depart(self, **faults: object) -> tuple[XenDeparture, XenArrival]:
        one, other = stream_pair(**faults)  # type: ignore[arg-type]
        disk = Disk(name="xvda", size=1 << 20)
        arriving = ArrivingDisk(disk=disk, volume="raw", location="/b", export="nbd+unix:///j-x")
        arrival = XenArrival(self.config, "web1", [arriving], other, self.options, "/script")
        await arrival.start()
        departure = XenDeparture(4, self.config, one, self.options)
        await departure.start()
        return departure, arrival

    async def suspend(self) -> None:
        """As libxl and the guest do it."""
        await self.ask()
        self.suspended()

    async def ask(self) -> None:
        """What libxl does, once xl has sent most of the memory."""
        await self.comes("asked")
        self.store.change(SHUTDOWN, "suspend")

    def suspended(self) -> None:
        """What the guest does: from here on xl may complete its stream."""
        self.store.change(SHUTDOWN, "")
        (self.folder / "suspended").touch()
        self.store.fire("@releaseDomain")

    async def push(self, departure: XenDeparture, arrival: XenArrival) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(arrival.receive())
            group.create_task(self.suspend())
            await departure.precopy()
            await departure.suspend()
            await departure.transfer()


@pytest_asyncio.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "config").write_bytes(msgspec.json.encode(DOMAIN))
    program = tmp_path / "xl"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -I {Path(__file__).with_name("fake_xl.py")} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_XL", str(folder))
    monkeypatch.setattr(arrival_module, "PullDevice", Device)
    monkeypatch.setattr(arrival_module.MemoryReservation, "make", _nothing)
    async with FakeXenStored(tmp_path / "socket", {NAME: "web1", SHUTDOWN: ""}) as store:
        made = Stage(folder, store)
        for module in (suspension, departure_module, leaving, recovery):
            monkeypatch.setattr(module, "state_of", made.state)
        yield made


async def _nothing(*args: object) -> None:
    """Memory is not what this is about."""


async def test_a_whole_migration(stage: Stage) -> None:
    departure, arrival = await stage.depart()
    await stage.push(departure, arrival)
    assert not stage.has("away"), "xl gave the guest away before the commit"
    assert not stage.has("running")
    await departure.release()
    assert stage.has("away")
    assert not stage.has("running"), "the guest runs before activate"
    await arrival.activate()
    assert stage.has("running")
    await departure.destroy()
    assert stage.has("destroyed")
    await departure.destroy()
    await arrival.finish()
    await arrival.finish()
    received = msgspec.json.decode((stage.folder / "received").read_bytes())
    disk = received["disks"][0]
    assert (disk["pdev_path"], disk["script"]) == ("/dev/mapper/vmferry-xvda", "/script")


async def test_the_stop_is_dated_by_the_event_not_by_when_it_was_asked_for(stage: Stage) -> None:
    departure, arrival = await stage.depart()
    assert departure.suspended_at is None
    receiving = asyncio.ensure_future(arrival.receive())
    await asyncio.gather(departure.precopy(), stage.suspend())
    loop, stopped = asyncio.get_running_loop(), departure._watch.stopped
    await asyncio.wait_for(stopped.wait(), 120)
    seen = loop.time()
    await asyncio.sleep(0.05)
    await departure.suspend()
    assert departure.suspended_at is not None
    assert departure.suspended_at <= seen
    await departure.resume()
    receiving.cancel()
    await asyncio.wait({receiving})
    await arrival.abort()


@pytest.mark.parametrize("reached", ["departed", "suspended", "transferred"])
async def test_resume_before_the_commit(stage: Stage, reached: str) -> None:
    departure, arrival = await stage.depart()
    if reached == "suspended":
        receiving = asyncio.ensure_future(arrival.receive())
        suspending = asyncio.ensure_future(stage.suspend())
        await departure.precopy()
        await departure.suspend()
        await suspending
        receiving.cancel()
        await asyncio.wait({receiving})
    elif reached == "transferred":
        await stage.push(departure, arrival)
    await departure.resume()
    assert stage.has("resumed")
    assert not stage.has("away")
    await departure.resume()
    await arrival.abort()
    assert not stage.has("running")
    assert arrival._devices["xvda"].done == ["make", "remove"]  # type: ignore[attr-defined]
    await arrival.abort()


async def test_a_relay_that_is_killed_fails_the_push_and_the_guest_goes_on(stage: Stage) -> None:
    departure, arrival = await stage.depart()
    receiving = asyncio.ensure_future(arrival.receive())
    copying = asyncio.ensure_future(departure.precopy())
    await stage.comes("asked")
    os.kill(_relay_of(departure), 9)
    with pytest.raises(HypervisorError, match="memory could not be sent"):
        await copying
    await departure.resume()
    assert stage.has("resumed")
    receiving.cancel()
    await asyncio.wait({receiving})
    await arrival.abort()


def _relay_of(departure: XenDeparture) -> int:
    process = departure._sender.xl._process
    assert process is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if not children:  # the wrapper is a shell that has become the program
        raise AssertionError("no relay")
    return int(children[0])


async def test_a_guest_that_shuts_down_is_told_apart(stage: Stage) -> None:
    departure, arrival = await stage.depart()
    receiving = asyncio.ensure_future(arrival.receive())
    copying = asyncio.ensure_future(departure.precopy())
    await stage.comes("asked")
    stage.poweroff = True
    stage.store.fire("@releaseDomain")
    with pytest.raises(GuestStopped):
        await copying
    receiving.cancel()
    await asyncio.wait({receiving})
    with pytest.raises(GuestStopped):
        await departure.resume()
    await arrival.abort()


async def test_a_destination_that_fails_fails_the_source(stage: Stage) -> None:
    departure, arrival = await stage.depart()
    receiving = asyncio.ensure_future(arrival.receive())
    asking = asyncio.ensure_future(stage.ask())
    await departure.precopy()
    await asking
    arrival._xl._process.kill()  # type: ignore[union-attr]
    with pytest.raises(HypervisorError, match="could not be received"):
        await receiving
    stage.suspended()
    transferring = asyncio.ensure_future(departure.transfer())
    await arrival._stream.write_eof()
    with pytest.raises(HypervisorError, match="ended its stream"):
        await transferring
    await departure.resume()
    assert stage.has("resumed")
    await arrival.abort()


async def test_a_guest_that_cannot_be_unpaused_is_told(stage: Stage) -> None:
    (stage.folder / "unpause-fails").touch()
    departure, arrival = await stage.depart()
    await stage.push(departure, arrival)
    await departure.release()
    with pytest.raises(HypervisorError, match="could not be started: code 1"):
        await arrival.activate()
    await departure.destroy() if stage.has("destroyed") else await _end(departure)
    await arrival.finish()


async def _end(departure: XenDeparture) -> None:
    """As a process that is ended: nothing is decided."""
    await departure._sender.xl.kill()
    await departure._close()


async def test_another_guest_than_agreed_is_refused(stage: Stage) -> None:
    other = {**DOMAIN, "c_info": {**DOMAIN["c_info"], "uuid": "u-2"}}  # type: ignore[dict-item]
    (stage.folder / "config").write_bytes(msgspec.json.encode(other))
    departure, arrival = await stage.depart()
    copying = asyncio.ensure_future(departure.precopy())
    with pytest.raises(VmferryError, match="another guest"):
        await arrival.receive()
    copying.cancel()
    await asyncio.wait({copying})
    await departure.resume()
    await arrival.abort()


async def test_a_stream_that_ends_early_is_told(stage: Stage) -> None:
    departure, arrival = await stage.depart()
    receiving = asyncio.ensure_future(arrival.receive())
    copying = asyncio.ensure_future(departure.precopy())
    await stage.comes("asked")
    copying.cancel()
    await asyncio.wait({copying})
    await departure._stop_carrying()
    await departure._stream.write_eof()
    with pytest.raises((ConnectionLost, HypervisorError)):
        await receiving
    await departure.resume()
    await arrival.abort()


async def _crash(departure: XenDeparture) -> None:
    """As if the agent had been killed: its descriptors are closed and nothing is said."""
    await departure._watch.close()
    await departure._stop_carrying()
    sender = departure._sender
    sender.data.close()
    sender.words.close()
    assert sender._relay is not None
    assert sender._watch is not None
    sender._watch.cancel()
    await asyncio.wait({sender._watch})
    sender._relay.close()


async def test_an_agent_that_dies_before_the_hold_leaves_the_guest_running(stage: Stage) -> None:
    departure, arrival = await stage.depart()
    copying = asyncio.ensure_future(departure.precopy())
    receiving = asyncio.ensure_future(arrival.receive())
    await stage.comes("asked")
    for task in (copying, receiving):
        task.cancel()
        await asyncio.wait({task})
    await _crash(departure)
    await stage.comes("resumed")
    await RecoveredDeparture(4, stage.config, stage.options).resume()
    await arrival.abort()
    await departure._sender.xl.ended(20)
    departure._sender.xl.close()


@pytest.mark.parametrize("committed", [False, True])
async def test_an_agent_that_dies_during_the_hold_leaves_the_decision(
    stage: Stage, committed: bool
) -> None:
    departure, arrival = await stage.depart()
    await stage.push(departure, arrival)
    await _crash(departure)
    recovered = RecoveredDeparture(4, stage.config, stage.options)
    if committed:
        await recovered.release()
        await recovered.release()
        assert stage.has("suspended"), "the guest was resumed though it was given away"
        await arrival.activate()
        await arrival.finish()
    else:
        assert stage.has("suspended"), "the guest was resumed before anybody decided"
        await recovered.resume()
        await recovered.resume()
        await arrival.abort()
    assert stage.has("resumed") != committed
    await departure._sender.xl.ended(20)
    departure._sender.xl.close()
