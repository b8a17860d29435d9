"""What is known about a guest from outside of it, and everything that was found amiss."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from vmferry.simulation.record import Record
from vmferry.simulation.stamps import Numbers
from vmferry.simulation.trace import Trace

__all__ = ["Findings", "Oracle", "Violation"]

_MANY = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not happen.

    Attributes:
        kind: ``lost``, ``wrong``, ``changed`` (a disk); ``bad-read``, ``io-error`` (what a guest
            was given); ``memory``, ``record``, ``time`` (a guest that is not what it was);
            ``two-owners``, ``no-owner``; ``not-local``, ``stuck``, ``complaint``.
        when: virtual time.
        text: what happened, to whom.

    """

    kind: str
    when: float
    text: str

    def __str__(self) -> str:
        return f"{self.when:.6f} {self.kind}: {self.text}"


class Findings:
    """All violations of a simulation, and how many were left out of the list."""

    def __init__(self, trace: Trace) -> None:
        self.violations: list[Violation] = []
        self.left_out = 0
        self._trace = trace

    def add(self, kind: str, text: str) -> None:
        """Note a violation; of one kind only the first so many."""
        if sum(violation.kind == kind for violation in self.violations) >= _MANY:
            self.left_out += 1
            return
        self._trace.add("violation", kind, text)
        self.violations.append(Violation(kind, asyncio.get_running_loop().time(), text))


@dataclass
class Oracle:
    """One guest as the world knows it, whatever happens to the guest.

    Attributes:
        record: what was submitted and acknowledged.
        versions: of each page of its memory.
        findings: where violations go.
        running: names of the hosts that run it, in the order they began.
        broken: it is no longer one guest that goes forward; nothing more is recorded or compared.
        gaps: seconds during which nobody ran it.

    """

    name: str
    record: Record
    versions: Numbers
    findings: Findings
    trace: Trace
    running: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    stopped_at: float = 0.0
    broken: bool = False

    def started(self, host: str) -> None:
        """The guest runs on ``host`` from this moment."""
        if self.running:
            self.findings.add("two-owners", f"{self.name} runs on {self.running[0]} and {host}")
            self.broken = True
        elif self.stopped_at:
            self.gaps.append(asyncio.get_running_loop().time() - self.stopped_at)
        self.trace.add("runs", self.name, host)
        self.running.append(host)

    def stopped(self, host: str) -> None:
        """The guest runs on ``host`` no more."""
        if host in self.running:
            self.trace.add("stops", self.name, host)
            self.running.remove(host)
            self.stopped_at = asyncio.get_running_loop().time()

    def same_number(self, ours: int, theirs: int) -> None:
        """Compare numbers that the guest's and the world's record gave the same request."""
        if ours != theirs:
            text = f"{self.name} makes request {theirs} when it is at {ours}: it went back in time"
            self.findings.add("time", text)
            self.broken = True

    def compare(self, record: Record, versions: Numbers) -> None:
        """Compare a guest with what it should be."""
        if self.broken:
            return
        for difference in self.record.differences(record):
            self.broken = True
            self.findings.add("record", f"{self.name} does not remember rightly: {difference}")
        for page in np.flatnonzero(versions != self.versions).tolist():
            text = f"{self.name} takes page {page} for version {versions[page]}, not "
            self.findings.add("memory", f"{text}{self.versions[page]}")
