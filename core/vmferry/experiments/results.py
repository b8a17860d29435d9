"""What one run is asked for, and what comes out of it. Both can be sent to another process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from vmferry.api import Load
from vmferry.engine.policy import PolicyOptions
from vmferry.experiments.parameters import Parameters, cell_of

__all__ = [
    "FIGURES",
    "MEASURE",
    "Event",
    "Figure",
    "PhaseTime",
    "Result",
    "Round",
    "RunSpec",
    "Series",
]

MEASURE = 2
"""Raised when a figure comes to mean something else, or is measured otherwise, so that runs of
before are not pooled with those of after: they are other cells."""


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One run, completely: nothing else decides what it does, but for chance and ``seed``.

    Attributes:
        parameters: the cell of the matrix.
        load: what its workload's name stands for.
        policy: what its policy's name stands for.
        options: options of plugins by kind and name.
        lab: what the laboratory's backend is told.
        model: what the model assumes, where it is not as usual.
        before: seconds the guest runs before it is moved.
        after: seconds it runs afterwards, before it is judged.
        timeout: seconds after which the run has failed.
        sample: seconds between samples.
        seed: start of the guest's random numbers.
        folder: folder below which the run makes its own; ``""`` is the system's temporary one.
        measure: what its figures mean; rows that do not say are of ``1``.

    """

    parameters: Parameters
    load: Load = Load()
    policy: PolicyOptions = PolicyOptions()
    options: dict[str, Any] = {}
    lab: dict[str, Any] = {}
    model: dict[str, Any] = {}
    before: float = 2.0
    after: float = 2.0
    timeout: float = 600.0
    sample: float = 0.1
    seed: int = 1
    folder: str = ""
    measure: int = MEASURE

    @property
    def cell(self) -> str:
        """Identifier of the cell with all that its names stand for; not of the repetition."""
        facts = msgspec.to_builtins(self)
        for name in ("seed", "folder", "timeout"):
            del facts[name]
        return cell_of(facts)


class PhaseTime(msgspec.Struct, frozen=True, kw_only=True):
    """A phase as one side saw it: ``begin`` is in seconds since the move began."""

    role: str
    name: str
    begin: float
    seconds: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """A round of PUSH; the fields are those of ``vmferry.api.RoundReport``, ``end`` is when."""

    number: int
    scanned: int
    sent: int
    zeroes: int
    seconds: float
    dirty: int
    memory: bool = False
    end: float = 0.0


class Series(msgspec.Struct, kw_only=True):
    """Samples over time.

    Attributes:
        times: seconds since the move began; negative before it.
        values: as many.

    """

    times: list[float] = []
    values: list[float] = []

    def add(self, time: float, value: float) -> None:
        """Note a sample."""
        self.times.append(time)
        self.values.append(value)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something worth knowing that happened ``time`` seconds after the move began."""

    time: float
    role: str
    name: str
    facts: dict[str, Any] = {}


class Figure(NamedTuple):
    """What a figure is: its unit (``s``, ``bytes`` or ``""``) and its meaning in one line."""

    unit: str
    help: str


FIGURES: Mapping[str, Figure] = {
    "total": Figure("s", "whole move, from the first word to the last block"),
    "downtime_source": Figure("s", "guest stands still, as the source saw it"),
    "downtime_destination": Figure("s", "the same as the destination saw it"),
    "downtime_guest": Figure("s", "the same as the guest saw it"),
    "sent": Figure("bytes", "payload that went over the link"),
    "bitmap_bytes": Figure("bytes", "dirty bitmaps on the link"),
    "pending": Figure("bytes", "still dirty at the switch: left for PULL"),
    "on_demand": Figure("", "blocks fetched because the guest read them"),
    "acknowledged": Figure("", "writes the guest was told have completed"),
    "checked": Figure("", "blocks compared with the guest's record"),
    "lost": Figure("", "blocks older than the record says"),
    "wrong": Figure("", "blocks that are no write of the guest's"),
    "bad_reads": Figure("", "reads that went wrong while the guest ran"),
    "bad_memory": Figure("", "pages that do not hold what the guest wrote"),
}
"""The figures a run may have; each is a column of the table ``run``."""


class Result(msgspec.Struct, kw_only=True):
    """How a run ended, and what was measured.

    Attributes:
        outcome: ``done``, or ``failed``: the guest did not arrive whole.
        error: why it failed, or ``""``.
        begun: when the move began, in seconds since 1970.
        figures: by name, see ``FIGURES``; ``None`` is one that nobody could tell.
        phases: of both sides.
        rounds: of PUSH.
        series: by name; ``moved``, ``pending``, and of the guest ``writes``, ``reads``, ``busy``;
            of its fio ``written_bytes`` and ``read_bytes`` too.
        events: what else happened.
        notes: in what the run differs from what was asked for.
        host: facts about the machine.
        versions: of vmferry and what it stands on.

    """

    outcome: str = "failed"
    error: str = ""
    begun: float = 0.0
    figures: dict[str, float | None] = {}
    phases: list[PhaseTime] = []
    rounds: list[Round] = []
    series: dict[str, Series] = {}
    events: list[Event] = []
    notes: list[str] = []
    host: dict[str, Any] = {}
    versions: dict[str, str] = {}
