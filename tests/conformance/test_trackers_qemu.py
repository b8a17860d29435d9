"""The tracker that needs QEMU, against its contract.

The guest is an NBD client of a qemu-storage-daemon, which has the bitmaps and the monitor of QEMU.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from vmferry.api.guest import Disk
from vmferry.testing.tracker import TrackerConformance, TrackerRig
from vmferry.units import MIB
from vmferry_hypervisors.process import nbd
from vmferry_support.commands import run
from vmferry_support.nbd import NbdClient
from vmferry_support.qmp import Qmp, QmpError, QmpRefused, awaited_socket
from vmferry_trackers.qcow2.tracker import Qcow2Tracker

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("qemu-storage-daemon") is None, reason="qemu-storage-daemon is not installed"
    ),
]
SIZE = 2 * MIB + 512


class DaemonRig(TrackerRig):
    """An image whose block node ``top`` a daemon exports to the guest, for writing."""

    def __init__(self, folder: Path, form: str) -> None:
        self._folder, self._form, self._image = folder, form, folder / f"disk.{form}"
        self._monitor, self._server = folder / "qmp", folder / "nbd"
        self._stderr = folder / "stderr"
        self.tracker = Qcow2Tracker()
        facts = {"qmp": str(self._monitor), "node": "top", "nbd": str(self._server)}
        self.disk = Disk(name="disk0", size=SIZE, location=str(self._image), facts=facts)

    async def open(self) -> None:
        await run("qemu-img", "create", "-q", "-f", self._form, str(self._image), str(SIZE))
        await self._start()
        self._guest = await NbdClient.connect(str(self._server), "guest")
        self._reader, _ = nbd.connect(f"nbd+unix:///guest?socket={self._server}", 60)

    async def _start(self) -> None:
        file = {"driver": "file", "filename": str(self._image), "discard": "unmap"}
        top = {"driver": self._form, "node-name": "top", "discard": "unmap", "file": file}
        with self._stderr.open("wb") as stderr:
            self._daemon = await asyncio.create_subprocess_exec(
                "qemu-storage-daemon",
                *("--chardev", f"socket,id=monitor,{awaited_socket(str(self._monitor))}"),
                *("--blockdev", json.dumps(top)),
                *("--nbd-server", f"addr.type=unix,addr.path={self._server},max-connections=0"),
                *("--export", "type=nbd,id=guest,node-name=top,name=guest,writable=on"),
                *("--monitor", "chardev=monitor"),
                stderr=stderr,
            )
        try:
            await (await Qmp.connect(str(self._monitor), appearing=True, timeout=60)).close()
        except BaseException as error:
            await self._killed()
            error.add_note(self._how_it_ended())
            raise

    def _how_it_ended(self) -> str:
        said = self._stderr.read_text(errors="replace")
        return f"qemu-storage-daemon ended with {self._daemon.returncode}, and said {said!r}"

    async def close(self) -> None:
        await self._guest.close()
        self._reader.close()
        try:
            await self._leave()
        except QmpError as error:
            await self._killed()
            raise AssertionError(self._how_it_ended()) from error
        assert await self._daemon.wait() == 0, self._how_it_ended()
        if self._form == "qcow2":
            await run("qemu-img", "check", "-q", "-f", "qcow2", str(self._image))

    async def _leave(self) -> None:
        async with await Qmp.connect(str(self._monitor)) as qmp:
            left = await qmp.execute("query-named-block-nodes", flat=True)
            assert not [node for node in left if node.get("dirty-bitmaps")]
            assert len(await qmp.execute("query-block-exports")) == 1
            await qmp.execute("quit")

    async def _killed(self) -> None:
        """Leave a crash the time to become a return code; end a daemon that does not answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._daemon.wait()
        if self._daemon.returncode is None:
            self._daemon.kill()
            await self._daemon.wait()

    async def guest_write(self, offset: int, data: bytes) -> None:
        await self._guest.write(offset, memoryview(data))

    async def guest_zero(self, offset: int, length: int) -> None:
        await self._guest.write_zeroes(offset, length)

    async def guest_discard(self, offset: int, length: int) -> None:
        await self._guest.trim(offset, length)

    def read_raw(self, offset: int, length: int) -> bytes:
        """By a connection and a client of its own, since only the daemon knows a qcow2's tables."""
        self._reader.sendall(nbd.pack_request(nbd.Command.READ, 1, offset, length))
        reply = receive(self._reader, nbd.REPLY.size + length)
        assert nbd.unpack_reply(reply, 0) == (0, 1)
        return reply[nbd.REPLY.size :]

    async def lose_track(self) -> bool:
        async with await Qmp.connect(str(self._monitor)) as qmp:
            nodes = await qmp.execute("query-named-block-nodes", flat=True)
            (top,) = [node for node in nodes if node["node-name"] == "top"]
            for bitmap in top.get("dirty-bitmaps", []):
                with suppress(QmpRefused):  # the tracker may be removing it
                    await qmp.execute("block-dirty-bitmap-remove", node="top", name=bitmap["name"])
        return True


def receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        view = view[connection.recv_into(view) :]
    return bytes(data)


class TestRaw(TrackerConformance):
    examples = 2  # the bitmaps are those of any format: qcow2 has the long run

    @pytest.fixture
    def rig(self, tmp_path: Path) -> DaemonRig:
        return DaemonRig(tmp_path, "raw")


class TestQcow2(TrackerConformance):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> DaemonRig:
        return DaemonRig(tmp_path, "qcow2")
