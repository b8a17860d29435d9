"""Disks that DRBD mirrors: one on each Xen host, and alike only once the hosts are connected."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from vmferry.units import GIB, KIB, MIB
from vmferry_lab.errors import LabError
from vmferry_lab.host import Host
from vmferry_lab.layout import HOSTS

__all__ = ["Mirror", "make_mirror", "remove_mirror"]

_PORT = 7788
_ADDRESSES = {place.name: place.address for place in HOSTS}

_SYNC = "--c-plan-ahead=0 --resync-rate=1G --c-min-rate=0"
"""As fast as it goes, whatever the guest does: by itself DRBD begins slowly and gives way."""

_NET = (
    "--protocol=C --allow-two-primaries=yes --timeout=300 --ping-timeout=300 --ping-int=60 "
    "--connect-int=60 --socket-check-timeout=5"
)
"""A write has completed when both disks have it; an emulated host may take half a minute."""

_MAKE = """\
set -e
modprobe drbd
echo /bin/true > /sys/module/drbd/parameters/usermode_helper
drbdmeta --force {number} v08 {meta} flex-external create-md >/dev/null
drbdsetup new-resource {name}
drbdsetup new-minor {name} {number} 0
drbdsetup attach {number} {disk} {meta} flexible {sync}
"""
"""The kernel asks a helper before it synchronises. Its own, drbdadm, refuses what is in no file."""

_ALIKE = """\
until grep -q '^ *{number}: cs:Connected .* ds:UpToDate/UpToDate ' /proc/drbd; do
    if grep -q '^ *{number}: cs:StandAlone ' /proc/drbd; then cat /proc/drbd >&2; exit 1; fi
    sleep 0.5
done
cat /proc/drbd
"""

_INSIST = """\
attempt=0
until said=$({command} 2>&1); do
    attempt=$((attempt + 1))
    if [ $attempt -gt 40 ]; then echo "$said" >&2; exit 1; fi
    sleep 0.5
done
"""
"""A backend, or udev, may hold the device for a moment after its guest has gone."""


@dataclass(frozen=True)
class Mirror:
    """A disk of two hosts, in the order of its steps.

    A step that fails raises ``CommandFailed``; :func:`remove_mirror` may follow upon any.

    Attributes:
        source: the host that may write it from the beginning.
        destination: the other one.
        name: of DRBD's resource, and of the disk below under ``/dev/mapper``.
        number: of the device.

    """

    source: Host
    destination: Host
    name: str
    number: int

    @property
    def device(self) -> str:
        """The path of the device, the same on both hosts."""
        return f"/dev/drbd{self.number}"

    def connect(self) -> None:
        """Connect the hosts: the whole disk is copied, and from now on each write goes to both."""
        for host in (self.source, self.destination):
            host.run(f"drbdsetup connect {self.name} {self._ends(host)} {_NET}")

    def await_copy(self, *, timeout: float) -> int:
        """Return once both disks are the same, by the word of both hosts.

        Args:
            timeout: seconds for each host.

        Returns:
            What :meth:`sent` gives at that time, without a command of its own.

        """
        script = _ALIKE.format(number=self.number)
        bounded = ["timeout", str(int(timeout)), "sh", "-c", script]
        status = self.source.run(bounded, timeout=timeout + 60)
        self.destination.run(bounded, timeout=timeout + 60)
        return self._sent(status)

    def promote(self) -> None:
        """Let the destination write it, too, as it must for a guest that arrives."""
        self.destination.run(f"drbdsetup primary {self.number}")

    def part(self) -> None:
        """Take it from the source, and disconnect: the destination's disk is the one that counts.

        The source's guest must have gone.
        """
        self.source.run(_INSIST.format(command=f"drbdsetup secondary {self.number}"))
        for host in (self.source, self.destination):
            host.run(f"drbdsetup disconnect {self._ends(host)}")

    def sent(self) -> int:
        """Bytes of the disk that the source has sent, the copy and each write since."""
        return self._sent(self.source.run("cat /proc/drbd"))

    def _sent(self, status: str) -> int:
        found = re.search(rf"^ *{self.number}: cs:.*\n +ns:(\d+)", status, re.MULTILINE)
        if found is None:
            raise LabError(f"{self.source.name} knows no {self.device}: {status}")
        return int(found[1]) * KIB

    def _ends(self, host: Host) -> str:
        """A host's own address and its peer's."""
        peer = self.destination if host is self.source else self.source
        port = _PORT + self.number
        return " ".join(f"ipv4:{_ADDRESSES[each.name]}:{port}" for each in (host, peer))


def make_mirror(source: Host, destination: Host, name: str, size: int) -> Mirror:
    """Make a disk of ``size`` bytes on both hosts that are not connected yet.

    Only the source's counts, and may be written. DRBD's own data is on a device beside it.

    Args:
        source: the host that may write it.
        destination: the other one.
        name: its name; letters, digits and ``-``.
        size: bytes; a multiple of 4096.

    """
    hosts = (source, destination)
    mirror = Mirror(source, destination, name, _free_number(hosts))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda host: _make(host, mirror, size), hosts))
    source.run(f"drbdsetup primary {mirror.number} --force")
    return mirror


def _free_number(hosts: Sequence[Host]) -> int:
    taken = " ".join(host.run("ls /sys/block") for host in hosts).split()
    return next(number for number in count() if f"drbd{number}" not in taken)


def _make(host: Host, mirror: Mirror, size: int) -> None:
    disk = host.guests.make_disk(mirror.name, size)
    # a bit for each 4 KiB of the disk, with room to spare
    meta = host.guests.make_disk(_meta(mirror.name), MIB * (1 + size // (16 * GIB)))
    places = {"disk": shlex.quote(disk), "meta": shlex.quote(meta), "sync": _SYNC}
    host.run(_MAKE.format(number=mirror.number, name=mirror.name, **places))


def _meta(name: str) -> str:
    return f"{name}-meta"


def remove_mirror(hosts: Sequence[Host], name: str) -> None:
    """Remove a mirrored disk from all hosts, whatever there is of it.

    Its guest must have gone.
    """
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(lambda host: _remove(host, name), hosts))


def _remove(host: Host, name: str) -> None:
    down = _INSIST.format(command=f"drbdsetup down {shlex.quote(name)}")
    host.run(f"if command -v drbdsetup >/dev/null; then\n{down}fi")
    for disk in (name, _meta(name)):
        host.guests.remove_disk(disk)
