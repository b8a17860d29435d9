"""Where things are in a laboratory's folder, and what is fixed about its hosts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["HOSTS", "LAN_MTU", "STORAGE", "Layout", "Place"]

LAN_MTU = 9000
"""Bytes in a packet between the hosts; every packet costs an emulated interrupt."""


@dataclass(frozen=True)
class Place:
    """One host's name and addresses; the same in every laboratory."""

    name: str
    index: int

    @property
    def address(self) -> str:
        """Its address on the LAN between the hosts."""
        return f"10.83.0.{10 + self.index}"

    def mac(self, card: int) -> str:
        """The hardware address of one of its network cards."""
        return f"52:54:00:4c:{card:02x}:{self.index:02x}"


HOSTS = (Place("hosta", 1), Place("hostb", 2))
"""The two Xen hosts."""

STORAGE = Place("hostc", 3)
"""The third host, without Xen, that exports shared disks."""


@dataclass(frozen=True)
class Layout:
    """Paths under a laboratory's folder; nothing is written outside it."""

    root: Path

    @property
    def cache(self) -> Path:
        """What outlives ``down``: images and downloaded wheels."""
        return self.root / "cache"

    @property
    def logs(self) -> Path:
        """Logs, kept until the next ``up``."""
        return self.root / "logs"

    @property
    def keys(self) -> Path:
        """The ssh keys of this laboratory."""
        return self.root / "keys"

    @property
    def run(self) -> Path:
        """What exists only while hosts run: disks, sockets."""
        return self.root / "run"

    @property
    def state(self) -> Path:
        """What is running, for the commands after ``up``."""
        return self.run / "lab.json"

    def console(self, name: str) -> Path:
        """What a host wrote to its serial line: Xen, then its kernel and services."""
        return self.logs / f"{name}.console.log"

    def qemu_log(self, name: str) -> Path:
        """What the host's QEMU complained about."""
        return self.logs / f"{name}.qemu.log"
