"""What vmferry is compared with between two Xen hosts: ``xl migrate``, on disks of two kinds."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from vmferry.experiments.results import Event, PhaseTime, Result

__all__ = ["BASELINES", "Baseline", "Watch"]


class Watch:
    """Times of a move that begins now."""

    def __init__(self, result: Result, check: Callable[[], None] = lambda: None) -> None:
        """Begin; ``check`` is called before each phase, and raises if there is to be none."""
        self.result, self._check = result, check
        result.begun = time.time()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the move has taken so far."""
        return time.monotonic() - self._began

    @property
    def total(self) -> float:
        """Seconds until the end of the last phase: what is looked up afterwards is no move."""
        return max((one.begin + one.seconds for one in self.result.phases), default=0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note what is done inside as a phase, also if it fails."""
        self._check()
        begin = self.seconds
        try:
            yield
        finally:
            seconds = self.seconds - begin
            one = PhaseTime(role="source", name=name, begin=begin, seconds=seconds)
            self.result.phases.append(one)

    def note(self, name: str, **facts: Any) -> None:
        """Note what has happened at the source."""
        self.result.events.append(Event(time=self.seconds, role="source", name=name, facts=facts))


class Baseline(ABC):
    """Unmodified ``xl migrate`` on a disk of some kind; each method blocks.

    Attributes:
        summary: one line, for people.
        flavour: what a laboratory must have been brought up with.
        option: how ``up`` is told so.

    """

    summary: ClassVar[str]
    flavour: ClassVar[str]
    option: ClassVar[str]

    def __init__(self, lab: Any, name: str, disks: Mapping[str, int], timeout: float) -> None:
        """Do nothing yet.

        Args:
            lab: the laboratory, up.
            name: of the guest.
            disks: its disks by name, with their sizes in bytes.
            timeout: seconds for a step of the move.

        """
        self.lab, self.name, self.disks, self.timeout = lab, name, disks, timeout
        self.here, self.there = lab.xen_hosts()[:2]

    @abstractmethod
    def make_disks(self) -> list[str]:
        """Make the guest's disks, and return their devices at the source."""

    def move(self, watch: Watch) -> None:
        """Move the guest, and all of its disk that is at the source."""
        with watch.phase("migrate"):
            self.here.run(["xl", "migrate", self.name, self.there.name], timeout=self.timeout)

    @abstractmethod
    def remove_disks(self) -> None:
        """Remove the disks, or what there is of them; their guest has gone."""


class Shared(Baseline):
    """The disk stays where it is: on a third host."""

    summary = "unmodified `xl migrate`, the disk on shared storage"
    flavour, option = "storage", "--storage"

    def make_disks(self) -> list[str]:
        """Make them on the third host."""
        return [self.lab.share_disk(name, size) for name, size in self.disks.items()]

    def remove_disks(self) -> None:
        """Remove them there, and from both hosts."""
        for name in self.disks:
            self.lab.unshare_disk(name)


class Mirrored(Baseline):
    """The disk is the source's own until the move begins, and the destination's own afterwards."""

    summary = "unmodified `xl migrate`, the disk copied and then mirrored by DRBD"
    flavour, option = "drbd", "--with drbd"
    _mirrors: Sequence[Any] = ()

    def make_disks(self) -> list[str]:
        """Make them on both hosts, which are not connected yet."""
        made = [self.lab.mirror_disk(name, size) for name, size in self.disks.items()]
        self._mirrors = made
        return [mirror.device for mirror in made]

    def move(self, watch: Watch) -> None:
        """Copy the disks, mirror them, move the guest meanwhile, and part the hosts again."""
        with watch.phase("sync"):
            for mirror in self._mirrors:
                mirror.connect()
            sent = [mirror.await_copy(timeout=self.timeout) for mirror in self._mirrors]
        watch.note("disk-copied", sent=sum(sent))
        with watch.phase("promote"):
            for mirror in self._mirrors:
                mirror.promote()
        super().move(watch)
        with watch.phase("part"):
            for mirror in self._mirrors:
                mirror.part()
        watch.note("disk-parted", sent=sum(mirror.sent() for mirror in self._mirrors))

    def remove_disks(self) -> None:
        """Remove them from both hosts."""
        for name in self.disks:
            self.lab.unmirror_disk(name)


BASELINES: Mapping[str, type[Baseline]] = {"xl-migrate": Shared, "xl-drbd": Mirrored}
"""By the name of the method."""
