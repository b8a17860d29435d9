"""What guests say on their serial lines, with the time: ``python -m ...recorder SOCKET FILE``.

A process of its own, so that nothing else delays its clock. QEMUs connect to SOCKET, also one after
the other, and all that they send is appended to FILE in the order it was received: frames of time
(``CLOCK_MONOTONIC``, seconds), number of the connection, what happened, length, and the bytes.
Where several have sent something, the older connection's is taken first: it is the guest's earlier
host.

What comes on stdin is sent to the connection that spoke last: that is where the guest is.
"""

from __future__ import annotations

import contextlib
import enum
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Happened", "Said", "read_frames", "record"]

_FRAME = struct.Struct("<dIII")
_PIECE = 1 << 16
_STDIN, _LISTENER = -2, -1


class Happened(enum.IntEnum):
    """What a frame tells of a connection."""

    SPOKE = 0
    OPENED = 1
    CLOSED = 2


class Said(NamedTuple):
    """One frame: seconds, number of the connection, what happened, what was said."""

    time: float
    connection: int
    happened: Happened
    data: bytes


def read_frames(data: bytes) -> Iterator[tuple[Said, int]]:
    """The whole frames in ``data``, each with the offset of its end."""
    at = 0
    while at + _FRAME.size <= len(data):
        when, connection, happened, length = _FRAME.unpack_from(data, at)
        start, at = at + _FRAME.size, at + _FRAME.size + length
        if at > len(data):
            return
        yield Said(when, connection, Happened(happened), data[start:at]), at


class _Recorder:
    def __init__(self, path: str, file: int) -> None:
        self._file = file
        self._connections: dict[int, socket.socket] = {}
        self._count = 0
        self._last = -1
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, _LISTENER)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, _STDIN)

    def run(self) -> None:
        while True:
            ready = sorted(key.data for key, _ in self._selector.select())
            for number in ready:
                if number == _LISTENER:
                    self._accept()
                elif number == _STDIN:
                    self._say()
                elif number in self._connections:
                    self._take(number)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._connections[self._count] = connection
        self._selector.register(connection, selectors.EVENT_READ, self._count)
        self._note(self._count, Happened.OPENED)
        self._count += 1

    def _take(self, number: int) -> None:
        connection = self._connections[number]
        try:
            data = connection.recv(_PIECE)
        except ConnectionError:
            data = b""
        if data:
            self._last = number
            self._note(number, Happened.SPOKE, data)
        else:
            self._selector.unregister(connection)
            connection.close()
            del self._connections[number]
            self._note(number, Happened.CLOSED)

    def _note(self, number: int, happened: Happened, data: bytes = b"") -> None:
        frame = _FRAME.pack(time.monotonic(), number, happened, len(data))
        os.write(self._file, frame + data)

    def _say(self) -> None:
        """Pass on what is asked of the guest; who asks may go before it."""
        data = os.read(sys.stdin.fileno(), _PIECE)
        if not data:
            self._selector.unregister(sys.stdin.fileno())
        elif self._last in self._connections:
            with contextlib.suppress(ConnectionError):
                self._connections[self._last].send(data)


def record(path: str, file: str) -> None:
    """Record until the process is ended.

    It goes before others where that is allowed: QEMU writes byte by byte, a few hundred of which
    fill a socket that is not read, and the guest then waits for its serial line.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    _Recorder(path, descriptor).run()


if __name__ == "__main__":
    record(*sys.argv[1:3])
