"""What an experiment asks of a trial: a guest that does this and that, moved by one way or another.

A trial that takes part in experiments says with ``Trial.plan`` how a wish becomes its options, or
why it cannot. Ways to move its guest other than vmferry's own, to be compared with it, are listed
in ``Trial.methods`` and done by ``Trial.move``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vmferry.api.plugin import Options

__all__ = ["Load", "MoveLink", "Moved", "TrialPlan", "TrialWish"]

Rate = Annotated[float, Meta(ge=0, le=1e7)]


class Load(Options, frozen=True, kw_only=True):
    """What a guest does with its disk and its memory."""

    write_rate: Annotated[Rate, Meta(description="disk writes per second")] = 0.0
    read_rate: Annotated[Rate, Meta(description="disk reads per second")] = 0.0
    full_speed: Annotated[
        bool, Meta(description="all requests that complete; the rates say how many are reads")
    ] = False
    request: Annotated[
        int, Meta(ge=512, le=1 << 22, description="one request", extra={"unit": "bytes"})
    ] = 4096
    pattern: Annotated[
        Literal["sequential", "random", "hotspot"],
        Meta(description="where requests go; hotspot: 9 of 10 to a tenth of what is used"),
    ] = "random"
    span: Annotated[
        float, Meta(gt=0, le=1, description="share of the disk that is used, from its start")
    ] = 1.0
    memory_rate: Annotated[Rate, Meta(description="pages of memory dirtied per second")] = 100.0
    trace: Annotated[
        str, Meta(description="block requests to replay in place of the rates: a prepared file")
    ] = ""
    fio: Annotated[
        str, Meta(description="a job of fio that the guest runs in place of all else: its text")
    ] = ""

    @property
    def idle(self) -> bool:
        """Whether the guest leaves its disk alone."""
        rates = self.full_speed or self.write_rate or self.read_rate
        return not (rates or self.trace or self.fio)

    @property
    def read_ratio(self) -> float:
        """Share of the requests that read."""
        both = self.write_rate + self.read_rate
        return self.read_rate / both if both else 0.0


class TrialWish(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that an experiment wants.

    Attributes:
        disk_size: bytes of its disk.
        memory: bytes of its memory.
        tracker: tracker that follows its disk; ``""``: the one that suits.
        volume: volume plugin of the destination's disk; ``""``: the one that suits.
        load: what it does.
        seed: start of its random numbers.

    """

    disk_size: int
    memory: int
    tracker: str = ""
    volume: str = ""
    load: Load = Load()
    seed: int = 1


class TrialPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a trial fulfils a wish.

    Attributes:
        options: the trial's options.
        notes: in what it differs from the wish, in words; they are kept with the results.

    """

    options: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MoveLink:
    """The link that a guest is to be moved over.

    Attributes:
        bandwidth: bytes per second that the mover should keep to; 0 is no limit.
        through: gives, for a TCP port of this machine that something listens on, the port to
            connect to instead, so that what passes has the link's rate, delay and loss.

    """

    bandwidth: int
    through: Callable[[int], Awaitable[int]]


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """How a guest was moved.

    Attributes:
        phases: seconds of each phase, in order.
        downtime: seconds from when the hypervisor stopped the guest until it was let run again;
            ``None`` if the mover cannot tell.
        guest_downtime: the same as the guest saw it.
        sent: bytes that went over the link; ``None`` if the mover cannot tell.
        pending: bytes of disk that were still missing when the guest ran at the destination.
        location: the disk that the guest uses now.

    """

    phases: dict[str, float]
    downtime: float | None = None
    guest_downtime: float | None = None
    sent: int | None = 0
    pending: int = 0
    location: str
