"""The QMP client against a monitor made of a few lines, and against QEMU's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import time

import pytest

from vmferry.errors import HypervisorError
from vmferry_support.qmp import Qmp, QmpError, QmpLost, QmpRefused, QmpTimeout, awaited_socket

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 5}, "package": ""},
        "capabilities": ["oob"],
    }
}


class Monitor:
    """Serves one client at a time, as QEMU does; ``script`` answers each command."""

    def __init__(self, path):
        self.path, self.turn = str(path), asyncio.Lock()
        self.said, self.clients, self.writer = [], 0, None
        self.tasks, self.heard = set(), asyncio.Event()

    async def __aenter__(self):
        self.server = await asyncio.start_unix_server(self.serve, self.path)
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        try:
            async with self.turn:
                self.clients += 1
                self.writer = writer
                self.send(GREETING)
                text = ""
                while piece := await reader.read(65536):
                    text = self.take(text + piece.decode())
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def take(self, text):
        """Answer the whole messages in ``text``, which nothing need separate; return the rest."""
        while text := text.lstrip():
            try:
                said, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            self.answer(said)
            text = text[end:]
        return text

    def send(self, message):
        self.writer.write(json.dumps(message).encode() + b"\r\n")

    def event(self, name, **data):
        self.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}})

    def answer(self, said):
        command, arguments = said["execute"], said.get("arguments", {})
        if command != "qmp_capabilities":
            self.said.append((command, arguments))
            self.heard.set()
        if command == "silence":
            return
        if command == "die":
            self.writer.transport.abort()
        elif command == "bad":
            self.send({"error": {"class": "GenericError", "desc": "no, thanks"}, "id": said["id"]})
        elif command == "noisy":
            for number in range(3):
                self.event("TICK", number=number)
            self.event("OTHER")
            self.send({"return": "done", "id": said["id"]})
        else:
            self.send({"return": {}, **({"id": said["id"]} if "id" in said else {})})


@pytest.fixture
async def monitor(tmp_path):
    async with Monitor(tmp_path / "qmp.sock") as monitor:
        yield monitor


@pytest.fixture
async def qmp(monitor):
    async with await Qmp.connect(monitor.path) as qmp:
        yield qmp


async def test_command(monitor, qmp):
    assert qmp.version == (7, 2, 5)
    await qmp.execute("do-it", {"with_this": 1}, node_name="top", left_out=None)
    assert monitor.said == [("do-it", {"with_this": 1, "node-name": "top"})]


async def test_refusal_names_the_command(qmp):
    with pytest.raises(QmpRefused, match="QEMU refused bad: no, thanks") as refused:
        await qmp.execute("bad")
    assert isinstance(refused.value, HypervisorError)
    assert (refused.value.command, refused.value.kind) == ("bad", "GenericError")
    assert await qmp.execute("good") == {}


async def test_events_before_the_wait_are_there(qmp):
    with qmp.listen("TICK") as events:
        assert await qmp.execute("noisy") == "done"
        event = await events.wait(lambda event: event.data["number"] == 1, timeout=60)
        assert event[:2] == ("TICK", {"number": 1})
        assert (await events.wait(timeout=60)).data["number"] == 2
        with pytest.raises(QmpTimeout, match="waiting for TICK"):
            await events.wait(timeout=0.01)


async def test_events_outside_the_block_are_not_kept(qmp):
    await qmp.execute("noisy")
    with qmp.listen() as events, pytest.raises(QmpTimeout):
        await events.wait(timeout=0.01)


async def test_an_event_that_comes_later(monitor, qmp):
    with qmp.listen("STOP") as events:
        waiting = asyncio.create_task(events.wait(timeout=60))
        await asyncio.sleep(0)
        monitor.event("RESUME")
        monitor.event("STOP")
        assert (await waiting).name == "STOP"


@pytest.mark.parametrize(
    ("ago", "heard"), [(5.0, -5.0), (-5.0, 0.0), (None, 0.0)], ids=["past", "future", "none"]
)
async def test_an_event_has_the_loops_time(monitor, qmp, ago, heard):
    stamp = time.time() - (ago or 0.0)
    parts = {"seconds": int(stamp), "microseconds": int(stamp % 1 * 1e6)}
    with qmp.listen("STOP") as events:
        sent = asyncio.get_running_loop().time()
        monitor.send({"event": "STOP", "timestamp": None if ago is None else parts})
        event = await events.wait(timeout=60)
    assert heard - 0.01 < event.at - sent < heard + 10
    assert event.at <= asyncio.get_running_loop().time()


async def test_no_answer_in_time(qmp):
    with pytest.raises(QmpTimeout, match=r"silence: QEMU at .* did not answer"):
        await qmp.execute("silence", timeout=0.05)
    assert await qmp.execute("good") == {}


async def test_loss_is_noticed_by_all(monitor, qmp):
    with qmp.listen("STOP") as events:
        waiting = [
            asyncio.create_task(each)
            for each in (events.wait(timeout=60), qmp.execute("silence"), qmp.execute("die"))
        ]
        for each in waiting:
            with pytest.raises(QmpLost):
                await each
        with pytest.raises(QmpLost, match="good"):
            await qmp.execute("good")
        with pytest.raises(QmpLost):
            await events.wait(timeout=60)
    assert qmp.lost
    with qmp.listen("STOP") as events, pytest.raises(QmpLost):
        await events.wait(timeout=None)


async def test_events_before_the_loss_are_there(monitor, qmp):
    with qmp.listen("SHUTDOWN") as events:
        monitor.event("SHUTDOWN", guest=True)
        with pytest.raises(QmpLost):
            await qmp.execute("die")
        assert (await events.wait(timeout=60)).data == {"guest": True}
        with pytest.raises(QmpLost):
            await events.wait(timeout=60)


async def test_one_connection_for_all(monitor):
    async with await Qmp.connect(monitor.path) as first:
        others = await asyncio.gather(*(Qmp.connect(monitor.path) for _ in range(5)))
        assert monitor.clients == 1
        for other in others:
            await other.close()
            await other.close()
            with pytest.raises(QmpLost, match="was closed"):
                await other.execute("good")
        assert await first.execute("good") == {}
    async with await Qmp.connect(monitor.path):
        assert monitor.clients == 2


async def test_connect_again_after_a_loss(monitor, qmp):
    with pytest.raises(QmpLost):
        await qmp.execute("die")
    async with await Qmp.connect(monitor.path) as again:
        assert await again.execute("good") == {}


async def test_monitor_held_by_another(monitor):
    reader, writer = await asyncio.open_unix_connection(monitor.path)
    await reader.readline()
    try:
        with pytest.raises(QmpError, match=r"did not greet.*a second one"):
            await Qmp.connect(monitor.path, timeout=0.1)
    finally:
        writer.close()
        await writer.wait_closed()
    async with await Qmp.connect(monitor.path) as qmp:
        assert await qmp.execute("good") == {}


async def test_nobody_there(tmp_path):
    with pytest.raises(QmpError, match=r"cannot connect to QEMU's monitor at .*none"):
        await Qmp.connect(str(tmp_path / "none"))
    with pytest.raises(QmpError, match="no QEMU monitor appeared"):
        await Qmp.connect(str(tmp_path / "none"), appearing=True, timeout=0.1)


async def test_wait_until_it_appears(tmp_path):
    path = tmp_path / "late"
    connecting = asyncio.create_task(Qmp.connect(str(path), appearing=True))
    await asyncio.sleep(0.03)
    async with Monitor(path), await connecting as qmp:
        assert await qmp.execute("good") == {}


async def test_an_event_before_the_greeting(tmp_path):
    async def hasty(reader, writer):
        writer.write(b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n')
        await reader.read()
        writer.close()
        await writer.wait_closed()
        hasty_server.close()
        started.set_result(Monitor(path))

    path = tmp_path / "qmp"
    started = asyncio.get_running_loop().create_future()
    hasty_server = await asyncio.start_unix_server(hasty, path)
    async with hasty_server:
        connecting = asyncio.create_task(Qmp.connect(str(path), appearing=True))
        async with await started, await connecting as qmp:
            assert await qmp.execute("good") == {}


async def test_not_a_monitor(tmp_path):
    ended = asyncio.Event()

    async def serve(reader, writer):
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()
        await writer.wait_closed()
        ended.set()

    path = str(tmp_path / "smtp")
    server = await asyncio.start_unix_server(serve, path)
    async with server:
        with pytest.raises(QmpError, match="is no QMP monitor socket"):
            await Qmp.connect(path)
        await ended.wait()


async def test_a_cancelled_command_leaves_the_connection_whole(monitor, qmp):
    task = asyncio.create_task(qmp.execute("silence"))
    await monitor.heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await qmp.execute("good") == {}


async def test_a_long_path(tmp_path):
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with contextlib.chdir(folder):
        async with Monitor("qmp"), await Qmp.connect(str(folder / "qmp")) as qmp:
            assert await qmp.execute("good") == {}


@pytest.mark.real
async def test_a_real_one(tmp_path):
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    path = str(tmp_path / "qmp")
    qemu = await asyncio.create_subprocess_exec(
        *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-nographic"),
        *("-qmp", f"unix:{awaited_socket(path)}"),
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        async with await Qmp.connect(path, appearing=True, timeout=60) as qmp:
            assert qmp.version >= (6, 0, 0)
            with pytest.raises(QmpRefused, match="block-export-del"):
                await qmp.execute("block-export-del", id="none")
            ours, theirs = socket.socketpair()
            with ours, theirs:
                await qmp.give_fd("spare", theirs.fileno())
                await qmp.execute("closefd", fdname="spare")
            with qmp.listen("SHUTDOWN") as events:
                await qmp.execute("quit")
                assert not (await events.wait(timeout=60)).data["guest"]
            assert await qemu.wait() == 0
    finally:
        if qemu.returncode is None:
            qemu.kill()
            await qemu.wait()
