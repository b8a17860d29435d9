"""A guest that stands still while its disk is exchanged, in a real QEMU: it always runs again."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from vmferry.api.guest import ArrivingDisk, Disk
from vmferry_hypervisors.qemu.pivoting import Pivots, ReattachedArrival
from vmferry_support.qmp import Qmp, QmpTimeout

pytestmark = pytest.mark.real


@pytest.fixture
def form():
    return "raw"


def arriving(volume="qcow2"):
    disk = Disk(name="disk0", size=1 << 20, location="x")
    return ArrivingDisk(disk=disk, export="", location="x", volume=volume)


async def state(qemu):
    """Whether it runs, and whether the note that it does not is there."""
    nodes = await qemu.qmp.execute("query-named-block-nodes", flat=True)
    marked = any(node["node-name"] == "vmferry-held" for node in nodes)
    return (await qemu.qmp.execute("query-status"))["running"], marked


async def test_an_image_is_exchanged_while_the_guest_stands_still(qemu):
    pivots = Pivots(qemu.qmp, {}, direct=False)
    async with pivots.held(arriving("raw")):
        assert await state(qemu) == (True, False)
    for _ in range(2):
        async with pivots.held(arriving()):
            assert await state(qemu) == (False, True)
        assert await state(qemu) == (True, False)


async def test_a_guest_that_somebody_else_has_paused_stays_so(qemu):
    await qemu.qmp.execute("stop")
    async with Pivots(qemu.qmp, {}, direct=False).held(arriving()):
        assert await state(qemu) == (False, False)
    assert await state(qemu) == (False, False)


@pytest.mark.parametrize("left", [True, False], ids=["its disk is left", "nothing is left"])
async def test_the_next_agent_lets_a_guest_run_that_the_last_one_has_held(qemu, left):
    last = Pivots(qemu.qmp, {}, direct=False).held(arriving())
    await last.__aenter__()
    assert await state(qemu) == (False, True)
    qmp = await Qmp.connect(qemu.monitor)
    arrival = ReattachedArrival(qmp, Pivots(qmp, {}, direct=False))
    if left:
        async with arrival.pivoting(arriving()):
            assert await state(qemu) == (False, True)
        assert await state(qemu) == (True, False)
    await arrival.finish()
    assert await state(qemu) == (True, False)
    await last.__aexit__(None, None, None)
    assert await state(qemu) == (True, False)


@pytest.mark.parametrize("error", [QmpTimeout("made up"), asyncio.CancelledError()])
async def test_a_stop_that_is_not_waited_for_is_taken_back(qemu, monkeypatch, error):
    real = Qmp.execute

    async def execute(self, command, *args, **more):
        answer = await real(self, command, *args, **more)
        if command == "stop":
            raise error
        return answer

    monkeypatch.setattr(Qmp, "execute", execute)
    with contextlib.suppress(type(error)):
        async with Pivots(qemu.qmp, {}, direct=False).held(arriving()):
            pytest.fail("nothing may be exchanged in a guest that may run")
    assert await state(qemu) == (True, False)


async def test_a_monitor_that_does_not_answer_is_asked_again(qemu, monkeypatch):
    """While a ``stop`` writes out what is under way, QEMU answers nothing."""
    real, silent = Qmp.execute, [True, True]

    async def execute(self, command, *args, **more):
        if command == "query-named-block-nodes" and silent and await is_held(real):
            silent.pop()
            raise QmpTimeout("made up")
        return await real(self, command, *args, **more)

    async def is_held(ask):
        return not (await ask(qemu.qmp, "query-status"))["running"]

    monkeypatch.setattr(Qmp, "execute", execute)
    async with Pivots(qemu.qmp, {}, direct=False).held(arriving()):
        pass
    assert not silent
    assert await state(qemu) == (True, False)


async def test_a_mark_that_an_agent_has_left_is_in_nobodys_way(qemu):
    await qemu.qmp.execute("blockdev-add", driver="null-co", node_name="vmferry-held", size=512)
    async with Pivots(qemu.qmp, {}, direct=False).held(arriving()):
        assert await state(qemu) == (False, True)
    assert await state(qemu) == (True, False)
