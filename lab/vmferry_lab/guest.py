"""A guest of the laboratory: a small PVH domain that writes its disks and checks them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

__all__ = [
    "BESIDE_FIO",
    "INITRD",
    "KERNEL_FOLDER",
    "WRITER_DISK",
    "FioReport",
    "GuestConfig",
    "Report",
    "Verdict",
    "decoded",
    "fio_report",
    "writer_words",
]

_T = TypeVar("_T")

KERNEL_FOLDER = "/srv/guest"
"""Where a host has the guests' kernel and initrd."""

INITRD = f"{KERNEL_FOLDER}/initrd.img"
"""The initrd of a guest without fio; where there is fio, ``fio.img`` beside it has that."""

WRITER_DISK = 16 << 20
"""Bytes of the disk that the writer has for itself in a guest whose first disk is fio's."""


BESIDE_FIO: Mapping[str, str | int] = {"rate": 5, "prefill": 1 << 10, "flush": 20, "verify": 4}
"""What it does there, see ``lab/guest/options.h``: a little, on the whole disk."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the guest counted since it started; it prints one a second.

    Attributes:
        writes: writes that were acknowledged.
        reads: reads whose content was compared.
        flushes: flushes that were acknowledged.
        discards: discards that were acknowledged.
        discards_refused: writers whose disk knows no discard.
        errors: requests that failed.
        bad: sectors that did not hold what was last written to them.
        gap: longest time in seconds in which the guest did not run, by a clock (CLOCK_BOOTTIME)
            that counts the time it was suspended: the downtime it has seen.
        gap_running: likewise by a clock (CLOCK_MONOTONIC) that does not count it.
        slowest: longest time in seconds of one request, by the clock of ``gap``.
        uptime: seconds since the guest's boot, by the clock of ``gap``.
        running: likewise by the clock of ``gap_running``.
        busy: whether its first fill or a check is under way.

    """

    writes: int
    reads: int
    flushes: int
    discards: int
    discards_refused: int
    errors: int
    bad: int
    gap: float
    gap_running: float
    slowest: float
    uptime: float
    running: float
    busy: bool = False


class Verdict(Report, frozen=True, kw_only=True):
    """The end of a comparison of everything the guest wrote, and the counters by then.

    Attributes:
        good: whether no request has failed and no sector was wrong, ever.
        sectors: sectors of 512 bytes that were compared.
        bad_now: those that were wrong this time.

    """

    good: bool
    sectors: int
    bad_now: int


class FioReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest's fio has done in one of its passes over a job file, all its jobs together.

    Attributes:
        number: the pass; the first is 1.
        uptime: when that was, in seconds since the guest's boot, by the clock of ``Report.gap``.
        code: fio's exit code, once the pass has ended; the last report of a pass.
        error: the first error number of a job, 0 if there is none; 84 (EILSEQ): what was read back
            is not what was written.
        reads: reads that completed, those to verify what was written among them.
        read_bytes: bytes of these.
        read_seconds: seconds they took together, by a clock that does not count a suspend.
        writes: writes that completed.
        written_bytes: bytes of these.
        write_seconds: seconds they took together.

    """

    number: int = msgspec.field(name="pass")
    uptime: float
    code: int | None = None
    error: int = 0
    reads: int = 0
    read_bytes: int = 0
    read_seconds: float = 0.0
    writes: int = 0
    written_bytes: int = 0
    write_seconds: float = 0.0


def decoded(line: str, kind: type[_T]) -> _T:
    """What a line of a word and JSON says; raises ``msgspec.DecodeError`` if it is not whole."""
    return msgspec.json.decode(line.partition(" ")[2], type=kind)


def fio_report(line: str) -> FioReport | None:
    """What a line of a guest's console says of its fio.

    ``None`` if it is another line, or one that was cut in two when the guest was moved.
    """
    if line.startswith("FIO {"):
        with contextlib.suppress(msgspec.DecodeError):
            return decoded(line, FioReport)
    return None


def writer_words(disks: Iterable[str], writer: Mapping[str, str | int]) -> list[str]:
    """The writer's part of a kernel's command line.

    Args:
        disks: names that the writer's disks have in the guest.
        writer: its options, as in ``lab/guest/options.h``.

    """
    options = {"disks": ",".join(disks), **writer}
    return [f"writer.{name}={value}" for name, value in options.items()]


@dataclass(frozen=True)
class GuestConfig:
    """What ``xl create`` is given.

    Attributes:
        name: the domain.
        disks: block devices of the host; the guest sees them as xvda, xvdb, ...
        memory: MiB.
        writer: options of the writer, as in ``lab/guest/options.h``: rate, lanes, partial, ...
        network: whether it has a network card on the LAN.
        backend: what serves its disks: ``phy`` is the kernel's blkback, ``qdisk`` QEMU, for which
            the laboratory must be up with that flavour.
        initrd: a path in the host.
        others: how many of the disks, the first, are not the writer's.

    """

    name: str
    disks: Sequence[str]
    memory: int = 128
    writer: Mapping[str, str | int] = field(default_factory=dict)
    network: bool = False
    backend: str = "phy"
    initrd: str = INITRD
    others: int = 0

    def text(self) -> str:
        """The configuration in the form of xl.cfg(5)."""
        names = [f"xvd{chr(ord('a') + number)}" for number in range(len(self.disks))]
        pairs = zip(self.disks, names, strict=True)
        lines = [
            f'name = "{self.name}"',
            'type = "pvh"',
            f'kernel = "{KERNEL_FOLDER}/vmlinuz"',
            f'ramdisk = "{self.initrd}"',
            f'cmdline = "{self._arguments(names[self.others :])}"',
            f"memory = {self.memory}",
            "vcpus = 1",
            "disk = [" + ", ".join(self._disk(path, name) for path, name in pairs) + "]",
            "vif = [" + ('"bridge=xenbr0"' if self.network else "") + "]",
            'on_crash = "preserve"',
            'on_reboot = "destroy"',
        ]
        return "\n".join(lines) + "\n"

    def _disk(self, path: str, name: str) -> str:
        return f'"format=raw, vdev={name}, access=w, backendtype={self.backend}, target={path}"'

    def _arguments(self, names: list[str]) -> str:
        return " ".join(["console=hvc0", "quiet", "panic=1", *writer_words(names, self.writer)])
