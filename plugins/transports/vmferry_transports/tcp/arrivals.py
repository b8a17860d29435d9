"""The receiving side of a lane: frames from a socket into the lane's inbox.

A bulk lane has a thread that blocks in the kernel, straight into the frame's buffer. The control
lane is received on the event loop: a thread would cost each message two changes of thread more,
and a guest may be waiting for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

from vmferry.api.transport import Limits
from vmferry_support.priority import step_back
from vmferry_transports.tcp.frames import FrameParser
from vmferry_transports.tcp.inbox import Inbox
from vmferry_transports.tcp.link import Link

__all__ = ["Ended", "LoopReceiver", "Receiver", "ThreadReceiver"]

Ended = Callable[[Exception | None], None]
"""Called once, in any thread, when no more frames will come, and why if not by an end."""


class Receiver(Protocol):
    """Receives one lane."""

    def catch_up(self) -> None:
        """Take what has come already, before the lane is ended; called on the event loop."""

    def join(self) -> None:
        """Wait for what is left of a receiver that has ended."""


class ThreadReceiver:
    """Receives in a thread; a ``background`` one gives way to others."""

    def __init__(
        self,
        link: Link,
        limits: Limits,
        inbox: Inbox,
        name: str,
        ended: Ended,
        *,
        background: bool = False,
    ) -> None:
        self._link, self._inbox, self._ended = link, inbox, ended
        self._background = background
        self._parser = FrameParser(limits)
        self._thread = threading.Thread(target=self._run, name=f"receive {name}", daemon=True)
        self._thread.start()

    def catch_up(self) -> None:
        """Nothing to do: the thread takes what comes at once."""

    def join(self) -> None:
        """Wait for the thread."""
        self._thread.join()

    def _run(self) -> None:
        if self._background:
            step_back()
        try:
            self._receive()
        except Exception as error:
            self._ended(error)
        else:
            self._ended(None)

    def _receive(self) -> None:
        parser = self._parser
        while True:
            if parser.large:
                count = self._link.fill(parser.room)
            else:
                count = self._link.receive(parser.room)
            for frame in parser.took(count):
                if frame is None:
                    return
                self._inbox.put(frame)
                del frame


class LoopReceiver:
    """Receives on the event loop, as long as the inbox has room."""

    def __init__(self, link: Link, limits: Limits, inbox: Inbox, ended: Ended) -> None:
        self._loop = asyncio.get_running_loop()
        self._link, self._inbox, self._ended = link, inbox, ended
        self._parser = FrameParser(limits)
        self._descriptor = link.descriptor
        self._done = self._paused = False
        inbox.on_room(self._wake)
        self._loop.add_reader(self._descriptor, self._readable)

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._resume)
        except RuntimeError:  # the loop is closed: so is everything
            return

    def catch_up(self) -> None:
        """Take what is in the socket: a peer says why it gives up before it does.

        Errors come up again when the loop looks at the socket.
        """
        if not self._done and not self._paused:
            with contextlib.suppress(Exception):
                self._receive()

    def join(self) -> None:
        """Nothing is left."""

    def _resume(self) -> None:
        if self._paused and not self._done:
            self._paused = False
            self._loop.add_reader(self._descriptor, self._readable)
            self._readable()

    def _readable(self) -> None:
        try:
            more = self._receive()
        except Exception as error:
            self._end(error)
        else:
            if not more:
                self._end(None)

    def _receive(self) -> bool:
        """Take what is there; false after the end of the lane."""
        while (count := self._link.receive_now(self._parser.room)) is not None:
            for frame in self._parser.took(count):
                if frame is None:
                    return False
                self._inbox.add(frame)
            if self._inbox.full:
                self._pause()
                break
        return True

    def _pause(self) -> None:
        self._paused = True
        self._loop.remove_reader(self._descriptor)

    def _end(self, error: Exception | None) -> None:
        self._done = True
        if not self._paused:
            self._loop.remove_reader(self._descriptor)
        self._ended(error)
