"""One migration at a time, and none of what an earlier one has left in the hosts.

A :class:`~vmferry_lab.ferry.Ferry` removes all that it made. One whose process was killed does
not, and its guest, programs and disks would disturb whatever is measured next. They are found by
the names that it gives, which nobody else does.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from vmferry_lab.errors import LabError
from vmferry_lab.ferry import clear_host
from vmferry_lab.host import Host
from vmferry_lab.layout import STORAGE
from vmferry_lab.mirror import remove_mirror
from vmferry_lab.storage import unshare_disk

if TYPE_CHECKING:
    from vmferry_lab.lab import Lab

__all__ = ["one_migration", "remove_leftovers"]

_META = "-meta"
_GUEST = re.compile(r"(ferry-[0-9a-f]{6})(--incoming|--migratedaway)?")
_DISK = re.compile(rf"(ferry-[0-9a-f]{{6}})(-\d+|-writer)?({_META})?")

_LOOK = """\
ls /root | sed 's/^/guest /'
xl list | sed 's/^/guest /'
ls /srv/disks | sed -n 's/^\\(.*\\)\\.img$/disk \\1/p'
dmsetup ls | sed 's/^/disk /'
tc qdisc show dev {interface} | sed -n 's/^qdisc netem [^ ]* root .*/netem root/p'
"""
_LOOK_AT_STORAGE = "ls /srv/disks | sed 's/^/disk /'"


class _Found(NamedTuple):
    """What is on a host: names of guests and disks, and whether netem holds back its packets."""

    guests: frozenset[str]
    disks: frozenset[str]
    netem: bool

    @classmethod
    def of(cls, said: str) -> _Found:
        pairs = [(kind, rest.split()[0]) for kind, _, rest in _parted(said) if rest.split()]
        disks = [word for kind, word in pairs if kind == "disk" and _DISK.fullmatch(word)]
        guests = [match[1] for kind, word in pairs if (match := _GUEST.fullmatch(word))]
        owners = [match[1] for disk in disks if (match := _DISK.fullmatch(disk))]
        return cls(frozenset(guests + owners), frozenset(disks), ("netem", "root") in pairs)


def _parted(said: str) -> Iterator[tuple[str, str, str]]:
    return (line.partition(" ") for line in said.splitlines())


@contextmanager
def one_migration(lab: Lab, interface: str) -> Iterator[None]:
    """Migrate alone while inside, in hosts in which nothing is left of an earlier migration.

    Args:
        lab: a laboratory that is up.
        interface: where netem is looked for.

    Raises:
        LabError: another process is inside.

    """
    with (lab.layout.run / "migration.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"another migration is under way in {lab.root}; wait for it") from None
        storage = [host for host in lab.hosts() if host.name == STORAGE.name]
        remove_leftovers(lab.xen_hosts(), storage, interface)
        yield


def remove_leftovers(hosts: Sequence[Host], storage: Sequence[Host], interface: str) -> None:
    """Remove every guest and disk of a ``Ferry``, and netem; one command each if there is none.

    Args:
        hosts: the Xen hosts.
        storage: the third host, if there is one.
        interface: of the Xen hosts, where netem is looked for.

    """
    looks = [(host, _LOOK.format(interface=interface)) for host in hosts]
    looks += [(host, _LOOK_AT_STORAGE) for host in storage]
    with ThreadPoolExecutor(len(looks)) as pool:
        found = list(pool.map(lambda look: _Found.of(look[0].run(look[1])), looks))
        for name in sorted(_all(one.guests for one in found)):
            list(pool.map(partial(clear_host, name=name), hosts))
    on_hosts = list(zip(hosts, found, strict=False))
    shared = _all(one.disks for one in found[len(hosts) :])
    for name in sorted(shared):
        unshare_disk(storage[0], hosts, name)
    _remove_disks([(host, one.disks - shared) for host, one in on_hosts])
    for host, one in on_hosts:
        if one.netem:
            host.run(f"tc qdisc del dev {interface} root")


def _all(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset(chain.from_iterable(sets))


def _remove_disks(found: Sequence[tuple[Host, frozenset[str]]]) -> None:
    """Remove disks of the hosts' own; one with a device for DRBD's data beside it is mirrored."""
    names = _all(disks for _, disks in found)
    mirrored = {name.removesuffix(_META) for name in names if name.endswith(_META)}
    for name in sorted(mirrored):
        remove_mirror([host for host, _ in found], name)
    for host, disks in found:
        for name in sorted(disks):
            if name.removesuffix(_META) not in mirrored:
                host.guests.remove_disk(name)
