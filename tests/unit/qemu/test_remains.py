"""When a QEMU is not needed any more, by the exports that it has."""

from __future__ import annotations

import asyncio

import pytest

from vmferry_hypervisors.qemu.remains import await_exports
from vmferry_support.qemu_exports import QemuExports

pytestmark = pytest.mark.real


@pytest.fixture
def form():
    return "raw"


@pytest.mark.parametrize(("what", "waits"), [("disk", True), ("dirty", False)])
async def test_only_who_reads_a_disk_is_waited_for(qemu, what, waits):
    exports = QemuExports(qemu.qmp)
    export = await exports.add("top", what)
    waiting = asyncio.create_task(await_exports(qemu.qmp))
    await asyncio.wait([waiting], timeout=0.3)
    assert waiting.done() is not waits
    await exports.remove(export.name)
    await asyncio.wait_for(waiting, 10)


async def test_what_a_dead_process_left_is_not_waited_for(qemu, monkeypatch):
    monkeypatch.setattr("vmferry_support.qemu_exports.os.getpid", lambda: (1 << 22) + 1)
    await QemuExports(qemu.qmp).add("top", "disk")
    monkeypatch.undo()
    await asyncio.wait_for(await_exports(qemu.qmp), 10)
