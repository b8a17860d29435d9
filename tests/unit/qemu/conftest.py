"""A QEMU without a machine, whose block nodes are written by its own ``qemu-io`` command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil

import pytest

from vmferry.api.guest import Disk
from vmferry_support.commands import run
from vmferry_support.qmp import Qmp, QmpRefused, awaited_socket

SIZE = 4 << 20


class Qemu:
    """One process, with a disk as node ``top``; ``qmp`` is connected, as a driver would be."""

    def __init__(self, folder, form, *machine):
        self.folder, self.form, self.machine = folder, form, machine
        self.image, self.monitor = folder / f"disk.{form}", str(folder / "qmp")
        self.location = f"qmp:{self.monitor}?node=top"
        facts = {"qmp": self.monitor, "node": "top"}
        self.disk = Disk(name="disk0", size=SIZE, location=self.location, facts=facts)

    async def __aenter__(self):
        await run("qemu-img", "create", "-q", "-f", self.form, str(self.image), str(SIZE))
        await self.start()
        return self

    async def start(self):
        driver = "host_device" if self.image.is_block_device() else "file"
        file = {"driver": driver, "filename": str(self.image), "discard": "unmap"}
        top = {"driver": self.form, "node-name": "top", "discard": "unmap", "file": file}
        self.process = await asyncio.create_subprocess_exec(
            *("qemu-system-x86_64", "-nodefaults", "-nographic"),
            *("-blockdev", json.dumps(top), *self.machine),
            *("-qmp", f"unix:{awaited_socket(self.monitor)}"),
            stdin=asyncio.subprocess.DEVNULL,
        )
        self.qmp = await Qmp.connect(self.monitor, appearing=True, timeout=60)

    async def quit(self):
        await self.qmp.execute("quit")
        await self.qmp.close()
        assert await self.process.wait() == 0

    async def kill(self):
        self.process.kill()
        await self.process.wait()

    async def __aexit__(self, *exc):
        await self.qmp.close()
        if self.process.returncode is None:
            await self.kill()

    async def io(self, command):
        """Do what qemu-io(1) does; the guest's part."""
        await self.io_on("top", command)

    async def io_on(self, node, command):
        """The same for another node."""
        line = f'qemu-io {node} "{command}"'
        said = await self.qmp.execute("human-monitor-command", command_line=line)
        assert "rror" not in said, said

    async def exports(self):
        return [export["id"] for export in await self.qmp.execute("query-block-exports")]

    async def bitmaps(self):
        nodes = await self.qmp.execute("query-named-block-nodes", flat=True)
        top = next(node for node in nodes if node["node-name"] == "top")
        return {bitmap["name"]: bitmap for bitmap in top.get("dirty-bitmaps", [])}

    async def serves(self):
        """Whether its NBD server runs; it does not afterwards."""
        try:
            await self.qmp.execute("nbd-server-stop")
        except QmpRefused:
            return False
        return True

    async def migrate(self):
        """Migrate to nobody, as far as the pause before the switch."""
        pause = {"capability": "pause-before-switchover", "state": True}
        events = {"capability": "events", "state": True}
        await self.qmp.execute("migrate-set-capabilities", capabilities=[pause, events])
        with self.qmp.listen("MIGRATION") as heard:
            await self.qmp.execute("migrate", uri="exec:cat >/dev/null")
            await heard.wait(lambda event: event.data["status"] == "pre-switchover", timeout=60)

    async def complete(self):
        """Go on to the end: the disk is another host's."""
        with self.qmp.listen("MIGRATION") as heard:
            await self.qmp.execute("migrate-continue", state="pre-switchover")
            await heard.wait(lambda event: event.data["status"] == "completed", timeout=60)


@pytest.fixture(params=["raw", "qcow2"])
def form(request):
    return request.param


@pytest.fixture
def machine():
    """What QEMU has beside the disk; a test may ask for a device by a parameter of this name."""
    return ("-machine", "none")


@pytest.fixture
async def qemu(tmp_path, form, machine):
    for program in ("qemu-system-x86_64", "qemu-img"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(Qemu(tmp_path, form, *machine))
