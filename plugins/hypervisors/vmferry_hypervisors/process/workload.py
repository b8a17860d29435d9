"""What a guest does, and how it chooses its next request."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from msgspec import Meta

from vmferry.api.plugin import Options

__all__ = ["Kind", "Splitmix", "Workload", "workload_of"]

Ratio = Annotated[float, Meta(ge=0, le=1)]
_MASK = 2**64 - 1
_HOT = 0.9


class Kind(enum.IntEnum):
    """Kinds of disk request. The first three are also kinds of entry in the table of writes."""

    WRITE = 0
    ZERO = 1
    TRIM = 2
    READ = 3
    FLUSH = 4


class Workload(Options, frozen=True, kw_only=True):
    """What the guest does with its disks and its memory.

    The guest never has two requests on one unit under way, unless both are reads: what a disk
    holds after overlapping writes is undefined.
    """

    unit: Annotated[
        Literal[512, 1024, 2048, 4096, 8192, 16384, 32768, 65536],
        Meta(description="bytes that carry one stamp of their own", extra={"unit": "bytes"}),
    ] = 4096
    io_size: Annotated[
        int,
        Meta(
            ge=512,
            le=1 << 22,
            description="bytes of one request; a multiple of unit",
            extra={"unit": "bytes"},
        ),
    ] = 4096
    pattern: Annotated[
        Literal["sequential", "random", "hotspot"],
        Meta(description="where it writes; hotspot: 9 of 10 requests in a tenth of the set"),
    ] = "random"
    working_set: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 53,
            description="bytes of each disk it writes, from the start; 0: all that fits",
            extra={"unit": "bytes"},
        ),
    ] = 0
    write_rate: Annotated[
        float, Meta(ge=0, le=1e7, description="disk requests per second; 0: as fast as they go")
    ] = 1000.0
    idle: Annotated[bool, Meta(description="no disk requests at all")] = False
    queue_depth: Annotated[int, Meta(ge=1, le=64, description="requests under way at once")] = 4
    read_ratio: Annotated[
        float, Meta(ge=0, le=1, description="share of requests that read and verify")
    ] = 0.1
    zero_ratio: Annotated[
        float, Meta(ge=0, le=1, description="share of writes that write zeroes")
    ] = 0.0
    trim_ratio: Annotated[float, Meta(ge=0, le=1, description="share of writes that discard")] = 0.0
    fsync_every: Annotated[
        int, Meta(ge=0, le=1 << 30, description="a flush after so many writes; 0: never")
    ] = 100
    memory_rate: Annotated[
        float, Meta(ge=0, le=1e7, description="memory pages dirtied per second")
    ] = 500.0
    memory_set: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 53,
            description="bytes of memory it dirties; less if memory is short",
            extra={"unit": "bytes"},
        ),
    ] = 16 << 20
    prefill: Annotated[
        float, Meta(ge=0, le=1, description="share of the disk that held data at the start")
    ] = 0.0
    trace: Annotated[
        str, Meta(description="block trace to replay instead, of fio or blkparse: a file")
    ] = ""
    trace_speed: Annotated[
        float, Meta(ge=0, le=1e6, description="times faster than recorded; 0: as fast as they go")
    ] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**62, description="start of the random numbers")] = 1

    def __post_init__(self) -> None:
        """Check what no single field can: raises ``ValueError``, as msgspec wants it."""
        if self.io_size % self.unit:
            raise ValueError(f"io_size {self.io_size} is not a multiple of unit {self.unit}")


def workload_of(options: Workload) -> Workload:
    """The workload alone, of options that extend it."""
    return Workload(**{name: getattr(options, name) for name in Workload.__struct_fields__})


class Splitmix:
    """Random numbers from one 64-bit state, small enough to be a register of the guest."""

    def __init__(self, state: int) -> None:
        self.state = state

    def below(self, limit: int) -> int:
        """A number in ``range(limit)``; the bias for limits far below 2**64 does not matter."""
        return self._next() % limit

    def chance(self, ratio: float) -> bool:
        """True with probability ``ratio``."""
        return ratio > 0 and self._next() < ratio * 2**64

    def place(self, pattern: str, cursor: int, limit: int) -> int:
        """Where the next request begins: an index in ``range(limit)``."""
        if pattern == "sequential":
            return cursor % limit
        if pattern == "hotspot" and self.chance(_HOT):
            return self.below(max(1, limit // 10))
        return self.below(limit)

    def _next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self.state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)
