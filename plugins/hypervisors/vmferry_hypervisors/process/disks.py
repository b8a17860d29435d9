"""A disk that is a plain file, and the choice by URL."""

from __future__ import annotations

import errno
import os
from collections import deque

from vmferry_hypervisors.process.disk import BACKOFF, Completion, Counters, Disk, Log, Request
from vmferry_hypervisors.process.nbd_disk import NbdDisk
from vmferry_hypervisors.process.workload import Kind

__all__ = ["FileDisk", "open_disk"]


class FileDisk(Disk):
    """A plain file or block device, by synchronous system calls.

    Zeroes are written; a trim does nothing, which its contract allows.
    """

    def __init__(self, path: str, counters: Counters, log: Log) -> None:
        super().__init__(counters, log)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._waiting: deque[Request] = deque()
        self._retry_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether the next ``poll`` has something to do."""
        return bool(self._waiting)

    def submit(self, request: Request) -> None:
        """Take a request."""
        self._waiting.append(request)

    def poll(self, now: float) -> list[Completion]:
        """Do what can be done without waiting; return what was completed."""
        done: list[Completion] = []
        while self._waiting and now >= self._retry_at:
            request = self._waiting[0]
            try:
                done.append(Completion(request, self._perform(request)))
                self._waiting.popleft()
            except OSError as error:
                self.counters.errors += 1
                self.log(f"{self._path}: {request.kind.name} at {request.offset}: {error.strerror}")
                self._retry_at = now + BACKOFF
        return done

    def _perform(self, request: Request) -> bytes:
        if request.kind == Kind.READ:
            return os.pread(self._file, request.length, request.offset)
        if request.kind == Kind.WRITE:
            self._write(request.payload(), request.offset)
        elif request.kind == Kind.ZERO:
            self._write(bytes(request.length), request.offset)
        elif request.kind == Kind.FLUSH:
            os.fdatasync(self._file)
        return b""

    def _write(self, data: bytes, offset: int) -> None:
        if os.pwrite(self._file, data, offset) != len(data):
            raise OSError(errno.EIO, f"short write at {offset}")

    def close(self) -> None:
        """Let go of the disk."""
        os.close(self._file)


def open_disk(url: str, size: int, counters: Counters, log: Log) -> Disk:
    """Open ``file:PATH`` or ``nbd+unix:///NAME?socket=PATH``; the latter connects by and by.

    Raises:
        OSError: the file cannot be opened.
        InputError: the URL is neither.

    """
    if url.startswith("file:"):
        return FileDisk(url.removeprefix("file:"), counters, log)
    return NbdDisk(url, size, counters, log)
