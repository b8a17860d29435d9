"""What QEMU is told when its guest may stop, with and without the capability for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

import pytest

from vmferry_hypervisors.qemu.departure import QemuDeparture
from vmferry_hypervisors.qemu.options import QemuOptions
from vmferry_hypervisors.qemu.relay import NoStream
from vmferry_support.qmp import Event

ACK = b"\x00\x07\x00\x00"
BASIC = ("events", "return-path", "pause-before-switchover")


class Silent(NoStream):
    """The other side says nothing."""

    async def read(self, limit: int = 1 << 20) -> bytes:
        await asyncio.Event().wait()
        return b""


class Monitor:
    """A QEMU as its monitor shows it, which stops its guest once the downtime limit is raised."""

    def __init__(self, capabilities: tuple[str, ...]) -> None:
        self.states = dict.fromkeys(capabilities, False)
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.theirs: socket.socket | None = None

    def listen(self, *names: str) -> Monitor:
        return self

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    async def wait(self, *, timeout: float | None) -> Event:
        async with asyncio.timeout(timeout):
            return await self.events.get()

    async def give_fd(self, name: str, fd: int) -> None:
        self.theirs = socket.socket(fileno=os.dup(fd))
        self.theirs.setblocking(False)

    async def execute(self, command: str, arguments: Any = None, **more: Any) -> Any:
        if command == "query-migrate-capabilities":
            return [{"capability": name, "state": on} for name, on in self.states.items()]
        if command == "query-migrate-parameters":
            return {"downtime-limit": 300, "max-bandwidth": 0}
        if command == "migrate-set-capabilities":
            self.states |= {one["capability"]: one["state"] for one in more["capabilities"]}
        elif command == "migrate-set-parameters" and arguments.get("downtime-limit") == 250:
            self.events.put_nowait(Event("STOP", {}, 12.5))
            self.events.put_nowait(Event("MIGRATION", {"status": "pre-switchover"}))
        return {}

    async def close(self) -> None:
        if self.theirs is not None:
            self.theirs.close()


@pytest.mark.parametrize(("known", "said"), [((), b""), (("switchover-ack",), ACK)])
async def test_the_word_is_said_only_to_a_qemu_that_waits_for_it(
    known: tuple[str, ...], said: bytes
) -> None:
    monitor: Any = Monitor(BASIC + known)
    options = QemuOptions(downtime_limit=0.25)
    departure = QemuDeparture(monitor, "guest", 1 << 20, (), Silent(), options)
    await departure.prepare()
    assert all(monitor.states.values())
    assert departure.suspended_at is None
    await departure.suspend()
    assert departure.suspended_at == 12.5
    heard = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10 if said else 0.1):
            heard = await asyncio.get_running_loop().sock_recv(monitor.theirs, 100)
    assert heard == said
    await departure.discard()
    assert not any(monitor.states.values())
