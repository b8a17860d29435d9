"""Frames on their way from the event loop to a socket.

A small frame goes out at once, from the loop, when nothing is queued and the socket has room. All
else is queued for a thread that is started when first needed.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from vmferry.errors import ConnectionLost, VmferryError
from vmferry_support.priority import step_back
from vmferry_transports.tcp.frames import END
from vmferry_transports.tcp.inbox import again, resolve
from vmferry_transports.tcp.link import Link, Parts

__all__ = ["Outbox"]

_INLINE = 160 << 10
"""Frames up to this size are copied once and sent from the loop; encrypting or copying that much
takes some ten microseconds."""


class _Job:
    """A queued frame. ``lock`` is held while the frame's buffers are touched."""

    __slots__ = ("begun", "done", "last", "lock", "parts")

    def __init__(self, parts: Parts, done: asyncio.Future[None], *, begun: bool) -> None:
        self.parts, self.done, self.begun, self.last = parts, done, begun, False
        self.lock = threading.Lock()

    def detach(self) -> None:
        """Copy what is left, so that the caller's buffer is no longer needed."""
        with self.lock:
            for index, part in enumerate(self.parts):
                self.parts[index] = memoryview(bytes(part))


class Outbox:
    """The sending side of a lane.

    Args:
        link: where to; released once when the side has ended.
        name: of the thread.
        failed: called from any thread when sending fails.
        ended: called from any thread when the side has let go of ``link``.
        background: its thread gives way to others.

    """

    def __init__(
        self,
        link: Link,
        name: str,
        failed: Callable[[OSError], None],
        ended: Callable[[], None],
        *,
        background: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link, self._name, self._failed, self._ended = link, name, failed, ended
        self._changed = threading.Condition(threading.Lock())
        self._jobs: deque[_Job] = deque()
        self._active: _Job | None = None
        self._refusal: VmferryError | None = None
        self._stopping = self._released = False
        self._thread: threading.Thread | None = None
        self._background = background

    async def send(self, start: bytes, payload: memoryview) -> None:
        """Send ``start`` and ``payload`` as one frame.

        When cancelled, a frame that has not been begun is taken back; of one that has, the rest
        is copied and sent.
        """
        job = self._offer(start, payload)
        if job is None:
            return
        try:
            await job.done
        except asyncio.CancelledError:
            self._withdraw(job)
            raise

    def _offer(self, start: bytes, payload: memoryview) -> _Job | None:
        """Send at once, or return the queued job."""
        with self._changed:
            if self._refusal is not None:
                raise again(self._refusal)
            size = len(start) + payload.nbytes
            if size > _INLINE:
                return self._queue(deque([memoryview(start), payload]), begun=False)
            parts: Parts = deque([memoryview(b"".join((start, payload)))])
            if self._inline(parts):
                return None
            return self._queue(parts, begun=not parts or parts[0].nbytes < size)

    def _inline(self, parts: Parts) -> bool:
        """Send without blocking if nothing is queued; true when all is sent."""
        if self._jobs or self._active is not None:
            return False
        try:
            while not self._link.drained(parts):
                if self._link.push(parts):
                    return False
        except OSError:
            return False  # the thread will meet the error and report it
        return True

    def _queue(self, parts: Parts, *, begun: bool) -> _Job:
        job = _Job(parts, self._loop.create_future(), begun=begun)
        self._jobs.append(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._changed.notify()
        return job

    def _withdraw(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs and not job.begun:
                self._jobs.remove(job)
                return
        job.detach()

    def finish(self, refusal: VmferryError, *, drop: bool) -> None:
        """Send an end after what is queued, then let go; later calls of ``send`` get ``refusal``.

        Called on the loop. With ``drop``, frames that have not been begun are refused as well.
        """
        with self._changed:
            if self._refusal is not None:
                return
            self._refusal = refusal
            if drop:
                self._refuse([job for job in self._jobs if not job.begun])
            self._queue_end()

    def _queue_end(self) -> None:
        parts: Parts = deque([memoryview(END)])
        if not self._inline(parts):
            job = self._queue(parts, begun=True)
            job.last = True
            job.done.add_done_callback(_retrieve)
        else:
            self._stop_thread()

    def fail(self, error: VmferryError) -> None:
        """Refuse all that is queued; the caller breaks the link to stop what is under way."""
        with self._changed:
            self._refusal = self._refusal or error
            self._refuse(list(self._jobs))
            self._stop_thread()

    def join(self) -> None:
        """Wait for the thread, if one was needed; call it when it has no more to do."""
        if self._thread is not None:
            self._thread.join()

    def _refuse(self, jobs: list[_Job]) -> None:
        for job in jobs:
            self._jobs.remove(job)
            resolve(self._loop, job.done, self._refusal)

    def _stop_thread(self) -> None:
        """Let go of the link: now, or as soon as the thread has stopped."""
        self._stopping = True
        self._changed.notify()
        if self._thread is None:
            self._release()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._link.release()
            self._ended()

    def _run(self) -> None:
        if self._background:
            step_back()
        try:
            while (job := self._next()) is not None:
                self._transmit(job)
                with self._changed:
                    self._active = None
                resolve(self._loop, job.done)
                if job.last:
                    break
        except OSError as error:
            self._failed(error)
        finally:
            self._leave()

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._jobs and not self._stopping:
                self._changed.wait()
            self._active = self._jobs.popleft() if self._jobs else None
            return self._active

    def _transmit(self, job: _Job) -> None:
        while True:
            with job.lock:
                if self._link.drained(job.parts):
                    return
                full = self._link.push(job.parts)
            if full:
                self._link.wait_writable()

    def _leave(self) -> None:
        with self._changed:
            job, self._active = self._active, None
            if job is not None:
                error = self._refusal or ConnectionLost("the connection was lost")
                resolve(self._loop, job.done, error)
            self._release()


def _retrieve(done: asyncio.Future[None]) -> None:
    """Mark an error as seen: that the end could not be sent is told by the lane."""
    if not done.cancelled():
        done.exception()
