"""What the guest does I/O on, whatever is behind it.

A disk takes requests and gives back completions; it never reports an error as one. What the server
refuses is counted and tried again, what a broken connection swallowed is sent again, for as long as
it takes: to the guest it is a disk that is slow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from vmferry_hypervisors.process.workload import Kind

__all__ = ["BACKOFF", "Completion", "Counters", "Disk", "Log", "Request"]

BACKOFF = 0.02
"""Seconds between two tries."""
Log = Callable[[str], None]


class Request(NamedTuple):
    """One request: ``payload`` makes a write's data, and may be asked for it again."""

    slot: int
    kind: Kind
    offset: int
    length: int
    payload: Callable[[], bytes]


class Completion(NamedTuple):
    """A request that was acknowledged, with the data that a read returned."""

    request: Request
    data: bytes


class Counters(Protocol):
    """Where a disk counts what happened to it: the guest's registers."""

    errors: int
    reconnects: int


class Disk(ABC):
    """What the guest does I/O on. Errors and reconnects are counted in ``counters``."""

    def __init__(self, counters: Counters, log: Log) -> None:
        self.counters, self.log = counters, log

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Take a request; its completion comes out of some later ``poll``."""

    @abstractmethod
    def poll(self, now: float) -> list[Completion]:
        """Do what I/O can be done without waiting; return what was completed."""

    @property
    def descriptor(self) -> int | None:
        """What becomes readable when ``poll`` has something to do, if anything does."""
        return None

    @property
    def unsent(self) -> bool:
        """Whether ``poll`` has something to do as soon as ``descriptor`` is writable."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Let go. Requests under way are forgotten; their slots in guest memory are not."""
