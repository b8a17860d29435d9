"""A device played in software: memory that the processes of one host share. A stub.

A landing zone is a memfd (memfd_create(2)) that the peer maps too. WRITE copies into it; what
the device would do at the other end is done there when it polls. Wire messages go through a
SOCK_SEQPACKET pair for each direction of a queue pair, whose system calls also keep the order of
memory accesses. memfds are sealed, so that a peer cannot shrink one that is mapped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import select
import socket
import struct
from collections import deque
from collections.abc import Sequence

from vmferry.api.transport import Address
from vmferry.errors import InputError, LinkError
from vmferry_transports.rdma.greeting import Endpoint
from vmferry_transports.rdma.providers.base import (
    Completion,
    Device,
    Opcode,
    Provider,
    QueuePair,
    Region,
    Remote,
)

__all__ = ["LOCAL", "SharedMemory"]

_WIRE = struct.Struct("!BxxxII")
_SEND, _WRITE = 1, 2
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NEEDED = fcntl.F_SEAL_SHRINK
_PORTS = range(20000, 60000)
_TRIES = 64
_CREDENTIALS = struct.Struct("3i")
LOCAL = ("", "localhost", "127.0.0.1", "::1")
_AT_ONCE = 64


class _Shared(Region):
    """A memfd, mapped."""

    def __init__(self, descriptor: int, size: int, key: int) -> None:
        self.descriptor, self.key = descriptor, key
        self._map = mmap.mmap(descriptor, size)
        self.view = memoryview(self._map)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.view.release()
            with contextlib.suppress(BufferError):  # a slice lives on; it is unmapped with it
                self._map.close()


class _Private(Region):
    """Memory of this process alone."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def close(self) -> None:
        return


def _memfd(size: int) -> _Shared:
    descriptor = os.memfd_create("vmferry-rdma", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return _Shared(descriptor, size, 1)
    except BaseException:
        os.close(descriptor)
        raise


def _foreign(descriptor: int, size: int) -> _Shared:
    """Map a peer's landing zone. Raises ``LinkError`` unless it is one of that size."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        found = os.fstat(descriptor).st_size
        if not seals & _NEEDED or seals & fcntl.F_SEAL_WRITE or found != size:
            raise LinkError(f"a landing zone of {found} bytes, sealed {seals:#x}")
        return _Shared(descriptor, size, 1)
    except OSError as error:
        raise LinkError(f"a landing zone that is none: {error.strerror}") from None


class _QueuePair(QueuePair):
    def __init__(self, landing: Region) -> None:
        self._landing = landing
        self._in, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._in.setblocking(False)
        self._out: socket.socket | None = None
        self._zone: _Shared | None = None
        self._receives: deque[tuple[int, Region, int, int]] = deque()
        self._waiting: deque[tuple[bytes, Completion]] = deque()
        self._done: list[Completion] = []
        self._dead = False
        self._epoll = select.epoll()
        self._epoll.register(self._in, select.EPOLLIN)

    @property
    def descriptor(self) -> int:
        return self._epoll.fileno()

    def endpoint(self) -> Remote:
        assert isinstance(self._landing, _Shared)
        endpoint = Endpoint(0, self._landing.key, self._landing.view.nbytes)
        return Remote(endpoint, (self._theirs.fileno(), self._landing.descriptor))

    def connect(self, remote: Remote) -> None:
        if len(remote.descriptors) != 2:
            _close_all(remote.descriptors)
            raise LinkError(f"{len(remote.descriptors)} descriptors for a queue pair, not 2")
        out, zone = remote.descriptors
        try:
            self._zone = _foreign(zone, remote.endpoint.size)
            self._out = _seqpacket(out)
        except BaseException:
            os.close(out)
            if self._zone is None:
                os.close(zone)
            raise
        self._epoll.register(self._out, 0)

    def told(self) -> None:
        self._theirs.close()

    def post_receive(self, work: int, region: Region, offset: int, size: int) -> None:
        self._receives.append((work, region, offset, size))

    def post_send(self, work: int, region: Region, offset: int, size: int) -> None:
        data = _WIRE.pack(_SEND, 0, size) + region.view[offset : offset + size]
        self._put(data, Completion(Opcode.SEND, work))

    def post_write(
        self, work: int, region: Region, offset: int, size: int, where: int, immediate: int
    ) -> None:
        assert self._zone is not None
        self._zone.view[where : where + size] = region.view[offset : offset + size]
        self._put(_WIRE.pack(_WRITE, immediate, size), Completion(Opcode.WRITE, work))

    def _put(self, data: bytes, completion: Completion) -> None:
        self._waiting.append((data, completion))
        if len(self._waiting) == 1:
            self._flush()

    def _flush(self) -> None:
        assert self._out is not None
        while self._waiting:
            data, completion = self._waiting[0]
            try:
                self._out.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError as error:
                self._fail(completion.opcode, error.strerror or str(error))
                return
            self._waiting.popleft()
            self._done.append(completion)
        self._epoll.modify(self._out, select.EPOLLOUT if self._waiting else 0)

    def _fail(self, opcode: Opcode, text: str) -> None:
        self._dead = True
        self._waiting.clear()
        self._done.append(Completion(opcode, error=text))

    def poll(self) -> list[Completion]:
        if self._waiting:
            self._flush()
        for _ in range(_AT_ONCE):
            if self._dead or not self._take():
                break
        done, self._done = self._done, []
        return done

    def _take(self) -> bool:
        """Do what the device would do with the next wire message; false if there is none."""
        most = self._receives[0][3] if self._receives else 0
        try:
            data = self._in.recv(_WIRE.size + most + 1)
        except BlockingIOError:
            return False
        except OSError as error:
            self._fail(Opcode.RECEIVE, error.strerror or str(error))
            return False
        self._handle(memoryview(data))
        return True

    def _handle(self, data: memoryview) -> None:
        if not data:
            return self._fail(Opcode.RECEIVE, "the peer closed the queue pair")
        if not self._receives:
            return self._fail(Opcode.RECEIVE, "receiver not ready")
        if data.nbytes < _WIRE.size:
            return self._fail(Opcode.RECEIVE, "no wire message")
        kind, immediate, size = _WIRE.unpack_from(data)
        work, region, offset, room = self._receives.popleft()
        body = data[_WIRE.size :]
        if kind == _SEND and size == body.nbytes <= room:
            region.view[offset : offset + size] = body
            self._done.append(Completion(Opcode.RECEIVE, work, size))
        elif kind == _WRITE and not body and size <= self._landing.view.nbytes:
            self._done.append(Completion(Opcode.RECEIVE_WRITE, work, size, immediate))
        else:
            self._fail(Opcode.RECEIVE, "no wire message")
        return None

    def close(self) -> None:
        self._dead = True
        self._epoll.close()
        for sock in (self._in, self._theirs, self._out):
            if sock is not None:
                sock.close()
        if self._zone is not None:
            self._zone.close()


def _seqpacket(descriptor: int) -> socket.socket:
    """Make a socket of a descriptor. Raises ``LinkError`` unless it is of the right kind."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise LinkError(f"a descriptor that is no socket: {error.strerror}") from None
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        sock.detach()
        raise LinkError("a socket of another kind")
    sock.setblocking(False)
    return sock


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Device(Device):
    def register(self, size: int, *, remote: bool = False) -> Region:
        try:
            return _memfd(size) if remote else _Private(memoryview(bytearray(size)))
        except (OSError, MemoryError) as error:
            raise LinkError(f"no {size} bytes of shared memory: {error}") from None

    def borrow(self, view: memoryview) -> Region | None:
        return _Private(view)

    def queue_pair(self, landing: Region, sends: int, receives: int) -> QueuePair:
        return _QueuePair(landing)

    def close(self) -> None:
        return


class SharedMemory(Provider):
    """Two processes of one host and one user, who meet at an abstract unix socket."""

    name = "shared_memory"

    def open(self) -> Device:
        """Open the device, which is always there."""
        return _Device()

    async def connect(self, address: Address) -> socket.socket:
        """Connect to the socket of that port."""
        sock = _stream()
        try:
            sock.connect(_where(address, address.port))
        except OSError as error:
            sock.close()
            text = "try again" if error.errno == errno.EAGAIN else "start the receiving side"
            raise LinkError(f"nobody listens at {address} on this host; {text}") from None
        return sock

    async def listen(self, address: Address) -> tuple[socket.socket, int]:
        """Take that port, or a free one."""
        ports = [address.port] if address.port else random.sample(_PORTS, _TRIES)
        for port in ports:
            sock = _stream()
            try:
                sock.bind(_where(address, port))
                sock.listen(64)
            except OSError:
                sock.close()
            except InputError:
                sock.close()
                raise
            else:
                return sock, port
        raise InputError(f"cannot listen at {address}: somebody does already")

    def identity(self, sock: socket.socket) -> str:
        """Return the peer's user; only this process's and root are let in."""
        size = _CREDENTIALS.size
        _, user, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        if ctypes.c_uint(user).value not in (0, os.geteuid()):
            raise LinkError(f"user {user} must not be there; run both ends as the same user")
        return f"uid {user}"


def _stream() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def _where(address: Address, port: int) -> bytes:
    if address.host not in LOCAL:
        raise InputError(
            f"{address}: shared memory reaches this host only; write rdma://127.0.0.1:PORT, or"
            " set provider=verbs for a device"
        )
    return b"\0vmferry-rdma/%d" % port
