"""The guest's disks: the NBD client against several servers, and plain files."""

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest

from vmferry.errors import InputError, ProtocolError
from vmferry.testing.export import RecordingExport
from vmferry_hypervisors.process import nbd
from vmferry_hypervisors.process.disk import Request
from vmferry_hypervisors.process.disks import open_disk
from vmferry_hypervisors.process.layout import Registers
from vmferry_hypervisors.process.workload import Kind

SIZE = 1 << 20


def request(kind, offset=0, length=4096, byte=b"\x01", slot=0):
    return Request(slot, kind, offset, length, lambda: byte * length)


class Driven:
    """A disk that is polled until what was asked for is done."""

    def __init__(self, url, size=SIZE):
        self.counters, self.log = Registers(), []
        self.disk = open_disk(url, size, self.counters, self.log.append)

    def do(self, *requests, patience=10.0):
        for each in requests:
            self.disk.submit(each)
        done, until = {}, time.monotonic() + patience
        while len(done) < len(requests):
            assert time.monotonic() < until, f"{len(done)} of {len(requests)} done; {self.log}"
            for completion in self.disk.poll(time.monotonic()):
                done[completion.request.slot] = completion.data
            time.sleep(0.001)
        return done


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    return path


def foreign_server(program, image, path):
    commands = {
        "qemu-nbd": ["qemu-nbd", "-t", "-f", "raw", "-x", "disk 0", "-k", path, image],
        "nbdkit": ["nbdkit", "-f", "-U", path, "file", image],
    }
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    return subprocess.Popen([str(word) for word in commands[program]])


@pytest.mark.real
@pytest.mark.parametrize("program", ["qemu-nbd", "nbdkit"])
def test_foreign_servers(program, image, tmp_path):
    path = tmp_path / "s"
    server = foreign_server(program, image, path)
    driven = Driven(f"nbd+unix:///disk%200?socket={path}")
    try:
        writes = [request(Kind.WRITE, k * 8192, 8192, bytes([k + 1]), k) for k in range(64)]
        driven.do(*writes)
        driven.do(request(Kind.ZERO, 8192, 4096), request(Kind.FLUSH, 0, 0, slot=1))
        read = driven.do(request(Kind.READ, 4096, 12288))[0]
        assert read == b"\x01" * 4096 + bytes(4096) + b"\x02" * 4096
        driven.do(request(Kind.TRIM, 16384, 8192))
        assert driven.counters.errors == driven.counters.reconnects == 0
    finally:
        driven.disk.close()
        server.terminate()
        server.wait()
    assert image.read_bytes()[40 * 8192 : 41 * 8192] == b"\x29" * 8192


class Served:
    """A recording export on a loop of its own, since the client under test is synchronous."""

    def __init__(self, image, path):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.export = self.run(self._make(image, path))
        self.run(self.export.start())

    @staticmethod
    async def _make(image, path):
        return RecordingExport(image, path, "disk0")

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def call(self, function):
        async def run():
            function()

        self.run(run())

    def close(self):
        self.run(self.export.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def served(image, tmp_path):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    served = Served(image, deep / "socket")
    yield served
    served.close()


def test_socket_path_may_be_long(served, image):
    driven = Driven(served.export.url)
    driven.do(request(Kind.WRITE, 4096))
    driven.disk.close()
    assert image.read_bytes()[:12288] == bytes(4096) + b"\x01" * 4096 + bytes(4096)


def test_requests_survive_a_broken_connection(served, image):
    driven = Driven(served.export.url)
    driven.do(request(Kind.READ))
    served.call(served.export.opened.clear)
    writes = [request(Kind.WRITE, k * 4096, byte=bytes([k + 1]), slot=k) for k in range(16)]
    for each in writes:
        driven.disk.submit(each)
    for _ in range(20):
        assert driven.disk.poll(time.monotonic()) == []
    served.call(served.export.drop)
    served.call(served.export.opened.set)
    driven.disk.poll(time.monotonic())
    assert len(driven.do(request(Kind.FLUSH, 0, 0, slot=99))) >= 1
    driven.disk.close()
    assert driven.counters.reconnects == 1
    assert [image.read_bytes()[k * 4096] for k in range(16)] == list(range(1, 17))


def test_refused_requests_are_counted_and_tried_again(served):
    driven = Driven(served.export.url)
    served.call(lambda: served.export.refuse.extend([errno.ENOSPC, errno.EIO]))
    driven.do(request(Kind.WRITE), request(Kind.READ, 4096, slot=1))
    driven.disk.close()
    assert driven.counters.errors == 2
    assert "No space left" in driven.log[0]


def test_server_that_comes_late_is_waited_for(image, tmp_path):
    path = tmp_path / "late"
    driven = Driven(f"nbd+unix:///disk0?socket={path}")
    driven.disk.submit(request(Kind.WRITE, slot=5))
    for _ in range(50):
        assert driven.disk.poll(time.monotonic()) == []
        time.sleep(0.001)
    served = Served(image, path)
    try:
        assert driven.do(request(Kind.FLUSH, 0, 0)) is not None
    finally:
        driven.disk.close()
        served.close()
    assert image.read_bytes()[0] == 1
    assert driven.counters.reconnects == 0
    assert len(driven.log) == 1


def test_export_that_is_too_small_is_not_used(served):
    driven = Driven(served.export.url, SIZE * 2)
    driven.disk.submit(request(Kind.WRITE))
    for _ in range(100):
        assert driven.disk.poll(time.monotonic()) == []
        time.sleep(0.001)
    driven.disk.close()
    assert f"has {SIZE} bytes" in driven.log[0]
    assert served.export.requests == 0


def test_no_nbd_server_is_refused(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def greet():
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=greet)
    thread.start()
    with pytest.raises(ProtocolError, match="newstyle"):
        nbd.connect(f"nbd+unix:///disk0?socket={tmp_path / 's'}", 5)
    thread.join()
    listener.close()


def test_plain_file(image):
    driven = Driven(f"file:{image}")
    driven.do(request(Kind.WRITE, 0, 12288), request(Kind.ZERO, 4096, slot=1))
    driven.do(request(Kind.TRIM, 8192), request(Kind.FLUSH, 0, 0, slot=1))
    assert driven.do(request(Kind.READ, 0, 12288))[0][:8192] == b"\x01" * 4096 + bytes(4096)
    driven.disk.close()


def test_failing_file_is_tried_again(image, monkeypatch):
    driven = Driven(f"file:{image}")
    write, failures = os.pwrite, [OSError(errno.EIO, "broken"), OSError(errno.ENOSPC, "full")]

    def fail_twice(*arguments):
        if failures:
            raise failures.pop()
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", fail_twice)
    driven.do(request(Kind.WRITE))
    driven.disk.close()
    assert driven.counters.errors == 2
    assert image.read_bytes()[0] == 1


@pytest.mark.parametrize("url", ["", "nbd://host/x", "nbd+unix:///x", "/dev/sda"])
def test_other_urls_are_refused(url):
    with pytest.raises(InputError, match=r"nbd\+unix:///NAME"):
        open_disk(url, SIZE, Registers(), print)
