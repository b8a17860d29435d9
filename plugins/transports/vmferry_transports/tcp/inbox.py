"""Frames on their way from a receiving thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

from vmferry.api.transport import Frame
from vmferry.errors import ConnectionLost, VmferryError

__all__ = ["Inbox", "again", "resolve"]

_FRAMES = 64
_BYTES = 4 << 20


def again(error: VmferryError) -> VmferryError:
    """Return a copy to raise, so that tracebacks do not pile up on one exception."""
    return type(error)(*error.args)


def resolve(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[None],
    error: VmferryError | None = None,
) -> None:
    """Settle ``future`` from any thread; nothing happens when its loop is gone."""

    def settle() -> None:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(again(error))

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(settle)


class Inbox:
    """A bounded queue: one thread puts or the loop adds, one coroutine gets.

    Holds at most 64 frames, and takes no further frame while it has 4 MiB.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition(threading.Lock())
        self._frames: deque[Frame] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._over = self._overflow = self._dropped = self._short = False
        self._room: Callable[[], None] | None = None
        self._error: VmferryError | None = None

    def put(self, frame: Frame) -> None:
        """Add a frame, blocking while there is no room. Without effect after ``end``."""
        with self._changed:
            while self._full() and not self._over and not self._overflow:
                self._changed.wait()
            self._take(frame)

    def add(self, frame: Frame) -> None:
        """Add a frame without blocking, full or not: what came along with the last that fitted.

        Then look at ``full``, and add no more until ``on_room`` says so.
        """
        with self._changed:
            self._take(frame, over=not self._overflow)

    def on_room(self, call: Callable[[], None]) -> None:
        """Have ``call`` called, from any thread, when there is room after ``full`` was true."""
        self._room = call

    @property
    def full(self) -> bool:
        """Whether nothing more should be added for now."""
        with self._changed:
            self._short = self._full() and not self._over and not self._overflow
            return self._short

    def _take(self, frame: Frame, *, over: bool = False) -> None:
        if self._over:
            return
        if self._full() and not over:
            self._dropped = True
            return
        self._frames.append(frame)
        self._size += len(frame.head) + len(frame.payload)
        self._wake()

    def _made_room(self) -> None:
        self._changed.notify_all()
        if self._short and self._room is not None:
            self._short = False
            self._room()

    def _full(self) -> bool:
        return len(self._frames) >= _FRAMES or self._size >= _BYTES

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            resolve(self._loop, waiter)

    def end(self, error: VmferryError | None, *, drop: bool = False) -> None:
        """Let ``get`` give what is queued (nothing if ``drop``), then ``None`` or ``error``."""
        with self._changed:
            if not self._over:
                self._over, self._error = True, error
                if error is None and self._dropped:
                    self._error = ConnectionLost("frames that came after close() were dropped")
            if drop:
                self._frames.clear()
                self._error = self._error or error
            self._made_room()
            self._wake()

    def overflow(self) -> None:
        """From here on drop frames instead of blocking; ``get`` does not end well after that."""
        with self._changed:
            self._overflow = True
            self._made_room()

    async def get(self) -> Frame | None:
        """Wait for the next frame. When cancelled, the frame stays for the next call."""
        while True:
            with self._changed:
                if self._frames:
                    return self._pop()
                if self._over:
                    if self._error is None:
                        return None
                    raise again(self._error)
                if self._waiter is not None and not self._waiter.done():
                    raise RuntimeError("receive() was called while another call waits")
                waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                waiter.cancel()

    def _pop(self) -> Frame:
        frame = self._frames.popleft()
        self._size -= len(frame.head) + len(frame.payload)
        self._made_room()
        return frame
