"""What must survive a crash of the agent: which migrations there are and how far each has come.

A host's journal holds its own side of each job. The commit is made by ``update(job,
committed=True)`` at the source; ``update(job, owner=True)`` at the destination says that the guest
is there. What an awaited call has written is durable when it returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec

from vmferry.api import Phase
from vmferry.errors import InputError

__all__ = [
    "Decided",
    "DiskRecord",
    "JobRecord",
    "Journal",
    "MemoryJournal",
    "changed",
    "decided",
    "unpacked",
    "with_pending",
]

T = TypeVar("T")
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_FIXED = frozenset({"job", "role", "disks", "created", "updated"})
Decided = Literal["owner", "withdrawn"]
"""Who may run the guest: this host, or never this host."""


class DiskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One disk of a job.

    Attributes:
        name: as in ``Disk.name``.
        location: where the volume plugin keeps this host's copy.
        volume: name of the volume plugin.
        size: bytes.
        block_size: bytes per block of the pending map.
        pending: the encoded pending map, ``DirtyMap.encode``; ``None`` if none was saved.

    """

    name: _Name
    location: str = ""
    volume: _Name = "raw"
    size: Annotated[int, msgspec.Meta(gt=0, le=1 << 53)]
    block_size: Annotated[int, msgspec.Meta(gt=0, le=1 << 53)]
    pending: bytes | None = None


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One migration as this host knows it.

    Attributes:
        job: identifier of the migration, the same on both hosts.
        role: this host's part in it.
        guest: name of the guest.
        description: the guest's encoded description; opaque to the journal.
        peer: address of the other host.
        epoch: number of the agreement on who owns the guest.
        phase: the last phase that was begun.
        committed: the source will not resume the guest by itself any more (source only).
        owner: the guest is this host's to run (destination only).
        started: the guest has run here since (destination only).
        withdrawn: the guest will never be run here under this epoch (destination only); excludes
            ``owner``.
        tidy: of what the job made here nothing is left that is not wanted.
        outcome: ``""`` while under way, then ``done``, ``failed`` or ``interrupted``.
        error: what went wrong, or ``""``.
        token: secret by which the source attaches again; opaque to the journal.
        facts: further things the engine needs after a crash; opaque to the journal.
        disks: in the order of the guest's disks.
        created: Unix time in seconds of ``open_job``; set by the journal.
        updated: Unix time in seconds of the last change; set by the journal.

    """

    job: _Name
    role: Literal["source", "destination"]
    guest: str = ""
    description: bytes = b""
    peer: str = ""
    epoch: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    phase: Phase = Phase.HANDSHAKE
    committed: bool = False
    owner: bool = False
    started: bool = False
    withdrawn: bool = False
    tidy: bool = False
    outcome: Literal["", "done", "failed", "interrupted"] = ""
    error: str = ""
    token: bytes = b""
    facts: bytes = b""
    disks: tuple[DiskRecord, ...] = ()
    created: float = 0.0
    updated: float = 0.0


class Journal(Protocol):
    """Keeps the records of one host's migrations.

    An unknown job, disk or field raises ``InputError``; a journal that cannot be read or written
    raises a ``VmferryError`` that names it. A call that is cancelled may have been carried out.
    """

    async def open_job(self, record: JobRecord) -> None:
        """Begin a job. Raises ``InputError`` if there is one of that identifier."""

    async def set_disks(self, job: str, disks: tuple[DiskRecord, ...]) -> None:
        """Say which disks a job has, in place of any it had, with their pending maps."""

    async def update(self, job: str, **fields: Any) -> None:
        """Change fields of a job other than ``job``, ``role``, ``disks`` and the times."""

    async def decide(self, job: str, field: Decided) -> JobRecord:
        """Set one of two fields that exclude each other, unless the other is set already.

        At once and atomically, also against other processes; returns the job, without its pending
        maps, as it is then. To set it again changes nothing.
        """

    async def save_pending(self, job: str, disk: str, encoded: bytes) -> None:
        """Replace the pending map of a disk, as a whole or not at all."""

    async def load(self, job: str) -> JobRecord:
        """One job with its disks."""

    async def jobs(self) -> list[JobRecord]:
        """All jobs in the order they were begun, without their pending maps."""

    async def epoch(self, guest: str) -> int:
        """The highest epoch of any job of a guest, also of forgotten ones; 0 without one."""

    async def scratch(self, job: str, disk: str, size: int) -> memoryview:
        """``size`` writable bytes that survive the agent's process, though not its host.

        Zero at first, and again after a restart of the host. There for as long as the job has no
        outcome.
        """

    async def forget(self, job: str) -> None:
        """Delete a job. No error if there is none."""

    async def close(self) -> None:
        """Give up the journal. May be called twice."""


def changed(record: JobRecord, fields: dict[str, Any], now: float) -> JobRecord:
    """``record`` with ``fields`` changed at ``now``; raises ``InputError`` naming a bad one."""
    if wrong := fields.keys() & _FIXED or fields.keys() - set(JobRecord.__struct_fields__):
        raise InputError(f"journal: {sorted(wrong)[0]!r} is no field of a job that can be changed")
    values = {name: getattr(record, name) for name in JobRecord.__struct_fields__}
    try:
        return msgspec.convert({**values, **fields, "updated": now}, JobRecord)
    except msgspec.ValidationError as error:
        raise InputError(f"journal: job {record.job}: {error}") from None


def decided(record: JobRecord, field: Decided, now: float) -> JobRecord:
    """``record`` with ``field`` set at ``now``, unless the other one is."""
    if record.owner or record.withdrawn:
        return record
    return changed(record, {field: True}, now)


def unpacked(record: JobRecord, field: str, kind: type[T]) -> T:
    """What ``description`` or ``facts`` of a job holds; raises ``InputError`` if it is damaged."""
    try:
        return msgspec.msgpack.decode(getattr(record, field), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"journal: job {record.job}: {field} is damaged: {error}") from None


def with_pending(record: JobRecord, disk: str, encoded: bytes, now: float) -> JobRecord:
    """``record`` with the pending map of one disk replaced at ``now``."""
    if disk not in (one.name for one in record.disks):
        raise InputError(f"journal: job {record.job} has no disk {disk!r}")
    disks = tuple(
        msgspec.structs.replace(one, pending=bytes(encoded)) if one.name == disk else one
        for one in record.disks
    )
    return msgspec.structs.replace(record, disks=disks, updated=now)


class MemoryJournal:
    """A journal for tests and simulations: durable as long as the object lives.

    Args:
        clock: Unix time in seconds.

    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._jobs: dict[str, JobRecord] = {}
        self._epochs: dict[str, int] = {}
        self._scratch: dict[tuple[str, str], bytearray] = {}

    async def open_job(self, record: JobRecord) -> None:
        """See ``Journal``."""
        if record.job in self._jobs:
            raise InputError(f"journal: there is a job {record.job} already")
        now = self._clock()
        self._keep(msgspec.structs.replace(record, created=now, updated=now))

    async def set_disks(self, job: str, disks: tuple[DiskRecord, ...]) -> None:
        """See ``Journal``."""
        self._jobs[job] = msgspec.structs.replace(
            self._known(job), disks=disks, updated=self._clock()
        )

    async def update(self, job: str, **fields: Any) -> None:
        """See ``Journal``."""
        self._keep(changed(self._known(job), fields, self._clock()))

    async def decide(self, job: str, field: Decided) -> JobRecord:
        """See ``Journal``."""
        self._jobs[job] = decided(self._known(job), field, self._clock())
        return self._jobs[job]

    async def save_pending(self, job: str, disk: str, encoded: bytes) -> None:
        """See ``Journal``."""
        self._jobs[job] = with_pending(self._known(job), disk, encoded, self._clock())

    async def load(self, job: str) -> JobRecord:
        """See ``Journal``."""
        return self._known(job)

    async def jobs(self) -> list[JobRecord]:
        """See ``Journal``."""
        return [
            msgspec.structs.replace(
                record,
                disks=tuple(msgspec.structs.replace(one, pending=None) for one in record.disks),
            )
            for record in self._jobs.values()
        ]

    async def epoch(self, guest: str) -> int:
        """See ``Journal``."""
        return self._epochs.get(guest, 0)

    async def scratch(self, job: str, disk: str, size: int) -> memoryview:
        """See ``Journal``."""
        return memoryview(self._scratch.setdefault((job, disk), bytearray(size)))

    async def forget(self, job: str) -> None:
        """See ``Journal``."""
        self._jobs.pop(job, None)

    async def close(self) -> None:
        """See ``Journal``; the records stay."""

    def crash(self, *, host: bool = False) -> MemoryJournal:
        """The journal as the next process finds it: all that was awaited.

        With ``host`` the whole host has crashed, and the scratch bytes are lost.
        """
        survivor = MemoryJournal(self._clock)
        survivor._jobs, survivor._epochs = dict(self._jobs), dict(self._epochs)
        if not host:
            survivor._scratch = {name: bytearray(data) for name, data in self._scratch.items()}
        return survivor

    def _keep(self, record: JobRecord) -> None:
        self._jobs[record.job] = record
        self._epochs[record.guest] = max(self._epochs.get(record.guest, 0), record.epoch)

    def _known(self, job: str) -> JobRecord:
        if job not in self._jobs:
            raise InputError(f"journal: there is no job {job}")
        return self._jobs[job]
