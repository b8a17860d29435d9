"""A guest of the laboratory: a small PVH domain that writes its disks and checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

__all__ = ["KERNEL_FOLDER", "GuestConfig", "Report", "Verdict"]

KERNEL_FOLDER = "/srv/guest"
"""Where a host has the guests' kernel and initrd."""


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

    """

    name: str
    disks: Sequence[str]
    memory: int = 128
    writer: Mapping[str, str | int] = field(default_factory=dict)
    network: bool = False
    backend: str = "phy"

    def text(self) -> str:
        """The configuration in the form of xl.cfg(5)."""
        names = [f"xvd{chr(ord('a') + number)}" for number in range(len(self.disks))]
        pairs = zip(self.disks, names, strict=True)
        lines = [
            f'name = "{self.name}"',
            'type = "pvh"',
            f'kernel = "{KERNEL_FOLDER}/vmlinuz"',
            f'ramdisk = "{KERNEL_FOLDER}/initrd.img"',
            f'cmdline = "{self._arguments(names)}"',
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
        options = {"disks": ",".join(names), **self.writer}
        words = [f"writer.{name}={value}" for name, value in options.items()]
        return " ".join(["console=hvc0", "quiet", "panic=1", *words])
