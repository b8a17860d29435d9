"""One socket as two threads and an event loop use it together.

The socket is in blocking mode. A receiving thread blocks in the kernel, straight into the frame's
buffer. The event loop, and everything that sends, asks not to block, and waits in ``poll``, so that
a caller's buffer can be taken away from a sender at any moment. See sendmsg(2), MSG_DONTWAIT.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections import deque

__all__ = ["Link", "Parts", "TlsLink"]

Parts = deque[memoryview]
"""What is still to be sent, in order; no part is empty."""

_RESET = struct.pack("ii", 1, 0)
_PIECE = 256 << 10
_SIDES = 2


def _advance(parts: Parts, count: int) -> None:
    """Take ``count`` bytes off the front."""
    while parts and count >= parts[0].nbytes:
        count -= parts.popleft().nbytes
    if count:
        parts[0] = parts[0][count:]


class Link:
    """A connected socket with two users, the sending and the receiving side of a lane.

    It is closed when both have called ``release``, so that no thread is left using a descriptor
    that means something else by then.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLOUT)
        self._lock = threading.Lock()
        self._users = _SIDES

    def push(self, parts: Parts) -> bool:
        """Send some of ``parts`` without blocking; true when the socket takes no more."""
        try:
            _advance(parts, self._sock.sendmsg(list(parts), [], socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        return False

    def drained(self, parts: Parts) -> bool:
        """True when all of ``parts`` is in the kernel's hands."""
        return not parts

    def wait_writable(self) -> None:
        """Block until the socket takes more, or is broken."""
        self._poll.poll()

    def receive(self, view: memoryview) -> int:
        """Block for at least one byte; 0 when the peer sends no more."""
        return self._sock.recv_into(view)

    def receive_now(self, view: memoryview) -> int | None:
        """Bytes that are there; 0 when the peer sends no more, ``None`` if one must wait."""
        try:
            return self._sock.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def fill(self, view: memoryview) -> int:
        """Block for all of ``view``, or what comes before a signal or the end; 0 at the end."""
        return self._sock.recv_into(view, 0, socket.MSG_WAITALL)

    @property
    def descriptor(self) -> int:
        """To wait for bytes with; it stays the link's."""
        return self._sock.fileno()

    def break_off(self) -> None:
        """Wake both sides with an error; the peer gets a reset once they have let go."""
        with self._lock, contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._sock.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Reset and close it, before anybody uses it."""
        self.break_off()
        for _ in range(_SIDES):
            self.release()

    def release(self) -> bool:
        """Let go of one side; true for the last, when the socket has been closed."""
        with self._lock:
            self._users -= 1
            if self._users:
                return False
            self._sock.close()
            return True


class TlsLink(Link):
    """A socket whose bytes go through TLS.

    An OpenSSL object must not be used by two threads at once, not even one reading and one
    writing; so each call into it holds a lock, and nothing blocks on the network while holding
    it. Otherwise two ends that send to each other over the same lane can stall for ever.
    """

    def __init__(
        self,
        sock: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        super().__init__(sock)
        self._tls, self._incoming, self._outgoing = tls, incoming, outgoing
        self._tls_lock = threading.Lock()
        self._sealed: Parts = deque()
        self._raw = memoryview(bytearray(_PIECE))

    def push(self, parts: Parts) -> bool:
        """Encrypt and send some of ``parts``; see ``Link.push``."""
        if not self._sealed:
            self._seal(parts)
        return super().push(self._sealed)

    def _seal(self, parts: Parts) -> None:
        """Encrypt the next piece of ``parts``."""
        with self._tls_lock:
            room = _PIECE
            while parts and room:
                count = self._tls.write(parts[0][:room])
                _advance(parts, count)
                room -= count
            self._sealed.append(memoryview(self._outgoing.read()))

    def drained(self, parts: Parts) -> bool:
        """True when all of ``parts`` is encrypted and in the kernel's hands."""
        return not parts and not self._sealed

    def receive(self, view: memoryview) -> int:
        """Block for at least one decrypted byte; 0 at the end."""
        count = self._receive(view, 0)
        assert count is not None
        return count

    def receive_now(self, view: memoryview) -> int | None:
        """Decrypted bytes that are there; see ``Link.receive_now``."""
        return self._receive(view, socket.MSG_DONTWAIT)

    def fill(self, view: memoryview) -> int:
        """Block for some of ``view``; 0 at the end."""
        return self.receive(view)

    def _receive(self, view: memoryview, flags: int) -> int | None:
        while (count := self._decrypted(view)) is None:
            try:
                raw = self._sock.recv_into(self._raw, 0, flags)
            except BlockingIOError:
                return None
            if not raw:
                return 0
            with self._tls_lock:
                self._incoming.write(self._raw[:raw])
        return count

    def _decrypted(self, view: memoryview) -> int | None:
        """Bytes that were there already; 0 at the end, ``None`` if more must be received."""
        with self._tls_lock:
            try:
                return int(self._tls.read(view.nbytes, view))
            except ssl.SSLWantReadError:
                return None
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0
