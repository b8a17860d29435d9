"""Shared disks: exported over NBD by the third host, attached to both Xen hosts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vmferry_lab.host import Host
from vmferry_lab.layout import STORAGE

__all__ = ["share_disk", "unshare_disk"]

_EXPORT = """\
set -e
file=/srv/disks/{name}
test ! -e "$file"
truncate -s {size} "$file"
chown nbd:nbd "$file"
printf '[%s]\\nexportname = %s\\ntrim = true\\n' {name} "$file" > /etc/nbd-server/conf.d/{name}.conf
systemctl restart nbd-server
"""
"""Restarting nbd-server leaves the connections of other exports alone: a process serves each."""

_ATTACH = """\
set -e
for number in $(seq 0 15); do
    nbd-client -c /dev/nbd$number >/dev/null || break
done
nbd-client -N {name} -persist {server} /dev/nbd$number >/dev/null
dmsetup create {name} --table "0 $(blockdev --getsz /dev/nbd$number) linear /dev/nbd$number 0"
"""

_DETACH = """\
if dmsetup info {name} >/dev/null 2>&1; then
    device=/dev/$(dmsetup deps -o blkdevname {name} | sed -n 's/.*(\\(nbd[0-9]*\\)).*/\\1/p')
    dmsetup remove --retry {name}
    nbd-client -d "$device" >/dev/null
fi
"""


def share_disk(storage: Host, hosts: Sequence[Host], name: str, size: int) -> str:
    """Make a disk of zeroes that all of ``hosts`` see, and return its device there.

    Args:
        storage: the third host.
        hosts: the Xen hosts.
        name: its name under ``/dev/mapper``.
        size: bytes; a multiple of 4096.

    """
    quoted = shlex.quote(name)
    storage.run(_EXPORT.format(name=quoted, size=size))
    for host in hosts:
        host.run(_ATTACH.format(name=quoted, server=STORAGE.name))
    return f"/dev/mapper/{name}"


def unshare_disk(storage: Host, hosts: Sequence[Host], name: str) -> None:
    """Remove a shared disk, wherever it is."""
    quoted = shlex.quote(name)
    for host in hosts:
        host.run(_DETACH.format(name=quoted))
    storage.run(f"rm -f /etc/nbd-server/conf.d/{quoted}.conf /srv/disks/{quoted}")
