"""A disk that is an NBD export on a unix socket."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque

from vmferry.errors import VmferryError
from vmferry_hypervisors.process import nbd
from vmferry_hypervisors.process.disk import BACKOFF, Completion, Counters, Disk, Log, Request
from vmferry_hypervisors.process.workload import Kind

__all__ = ["NbdDisk"]

_COMMANDS = {
    Kind.READ: nbd.Command.READ,
    Kind.WRITE: nbd.Command.WRITE,
    Kind.FLUSH: nbd.Command.FLUSH,
    Kind.TRIM: nbd.Command.TRIM,
    Kind.ZERO: nbd.Command.WRITE_ZEROES,
}
_NEEDS = {
    Kind.FLUSH: nbd.Flag.SEND_FLUSH,
    Kind.TRIM: nbd.Flag.SEND_TRIM,
    Kind.ZERO: nbd.Flag.SEND_WRITE_ZEROES,
}
_RECEIVE = 1 << 20


class _Connecting:
    """A connection being made on a thread, so that the guest's processor does not stand still."""

    def __init__(self, url: str, timeout: float) -> None:
        self.result: tuple[socket.socket, nbd.Export] | Exception | None = None
        self._arguments = (url, timeout)
        self._lock = threading.Lock()
        self._abandoned = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            result: tuple[socket.socket, nbd.Export] | Exception = nbd.connect(*self._arguments)
        except (OSError, VmferryError) as error:
            result = error
        with self._lock:
            self.result = result
            self._discard()

    def abandon(self) -> None:
        """Nobody wants it any more: it is closed as soon as it is there."""
        with self._lock:
            self._abandoned = True
            self._discard()

    def _discard(self) -> None:
        if self._abandoned and isinstance(self.result, tuple):
            self.result[0].close()


class NbdDisk(Disk):
    """An NBD export on a unix socket, with as many requests under way as are submitted.

    After a broken connection the requests without a reply are sent again, before any later one. It
    takes for granted what a disk's server owes: that nothing it still does for a connection that is
    gone lands after what was acknowledged on a later one.
    """

    def __init__(
        self, url: str, size: int, counters: Counters, log: Log, timeout: float = 5.0
    ) -> None:
        super().__init__(counters, log)
        nbd.parse_url(url)
        self._url, self._size, self._timeout = url, size, timeout
        self._outstanding: dict[int, Request] = {}
        self._retry: deque[Request] = deque()
        self._handle = 0
        self._retry_at = 0.0
        self._socket: socket.socket | None = None
        self._connecting: _Connecting | None = None
        self._flags = 0
        self._output = bytearray()
        self._input = bytearray()
        self._connected_before = False
        self._last_failure = ""

    @property
    def descriptor(self) -> int | None:
        """The socket, while there is one."""
        return self._socket.fileno() if self._socket else None

    @property
    def unsent(self) -> bool:
        """Whether the socket took less than was to be sent."""
        return bool(self._output)

    def submit(self, request: Request) -> None:
        """Take a request."""
        self._retry.append(request)

    def poll(self, now: float) -> list[Completion]:
        """Do what can be done without waiting; return what was completed."""
        if self._socket is None:
            self._reconnect(now)
        if self._socket is None:
            return []
        done: list[Completion] = []
        try:
            self._receive(now, done)
            if now >= self._retry_at:
                self._send_waiting(done)
            self._send()
        except (OSError, VmferryError) as error:
            self._broken(str(error), now)
        return done

    def _reconnect(self, now: float) -> None:
        if self._connecting is None:
            if now >= self._retry_at:
                self._connecting = _Connecting(self._url, self._timeout)
            return
        result = self._connecting.result
        if result is None:
            return
        self._connecting = None
        if isinstance(result, Exception):
            self._broken(str(result), now)
            return
        self._adopt(*result, now)

    def _adopt(self, connection: socket.socket, export: nbd.Export, now: float) -> None:
        if export.size < self._size:
            connection.close()
            self._broken(f"the export has {export.size} bytes, not {self._size}", now)
            return
        connection.setblocking(False)
        self._socket, self._flags = connection, export.flags
        self.counters.reconnects += self._connected_before
        self._connected_before, self._last_failure = True, ""

    def _broken(self, reason: str, now: float) -> None:
        """Forget the connection; everything under way is sent again on the next."""
        if reason != self._last_failure:
            self.log(f"{self._url}: {reason}; trying again")
        self._last_failure = reason
        if self._socket:
            self._socket.close()
        self._socket = None
        self._output.clear()
        self._input.clear()
        self._retry.extendleft(reversed(self._outstanding.values()))
        self._outstanding.clear()
        self._retry_at = now + BACKOFF

    def _send_waiting(self, done: list[Completion]) -> None:
        while self._retry:
            request = self._retry.popleft()
            needs = _NEEDS.get(request.kind, 0)
            if self._flags & needs != needs and request.kind != Kind.ZERO:
                done.append(Completion(request, b""))
                continue
            self._queue(request, plain=self._flags & needs != needs)

    def _queue(self, request: Request, *, plain: bool) -> None:
        """Put a request on its way; ``plain`` zeroes are written as data."""
        self._handle += 1
        self._outstanding[self._handle] = request
        command = nbd.Command.WRITE if plain else _COMMANDS[request.kind]
        self._output += nbd.pack_request(command, self._handle, request.offset, request.length)
        if command == nbd.Command.WRITE:
            self._output += bytes(request.length) if plain else request.payload()

    def _send(self) -> None:
        connection = self._socket
        while self._output and connection:
            try:
                sent = connection.send(self._output)
            except BlockingIOError:
                return
            del self._output[:sent]

    def _receive(self, now: float, done: list[Completion]) -> None:
        connection = self._socket
        while connection:
            try:
                piece = connection.recv(_RECEIVE)
            except BlockingIOError:
                break
            if not piece:
                raise ConnectionResetError("the server ended the connection")
            self._input += piece
        self._take_replies(now, done)

    def _take_replies(self, now: float, done: list[Completion]) -> None:
        at = 0
        while len(self._input) - at >= nbd.REPLY.size:
            error, handle = nbd.unpack_reply(self._input, at)
            request = self._outstanding.get(handle)
            if request is None:
                raise ConnectionResetError(f"a reply to request {handle}, which was never made")
            length = request.length if request.kind == Kind.READ and not error else 0
            end = at + nbd.REPLY.size + length
            if len(self._input) < end:
                break
            del self._outstanding[handle]
            if error:
                self._refused(request, error, now)
            else:
                done.append(Completion(request, bytes(self._input[end - length : end])))
            at = end
        del self._input[:at]

    def _refused(self, request: Request, error: int, now: float) -> None:
        self.counters.errors += 1
        self.log(f"{self._url}: {request.kind.name} at {request.offset}: {os.strerror(error)}")
        self._retry.append(request)
        self._retry_at = now + BACKOFF

    def close(self) -> None:
        """Let go of the disk."""
        if self._connecting:
            self._connecting.abandon()
        if self._socket:
            self._socket.close()
            self._socket = None
