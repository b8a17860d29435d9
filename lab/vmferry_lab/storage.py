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
port=10810
while ss -Hltn "sport = :$port" | grep -q .; do port=$((port + 1)); done
cat > "$file.conf" << END
[generic]
user = nbd
group = nbd
port = $port
[{name}]
exportname = $file
trim = true
END
nbd-server -C "$file.conf" -p "$file.pid" > /dev/null 2>&1
echo $port
"""
"""Each export has a server: one that is told of another export by a restart drops those it has."""

_ATTACH = """\
set -e
for number in $(seq 0 15); do
    nbd-client -c /dev/nbd$number >/dev/null || break
done
for attempt in $(seq 20); do
    nbd-client -N {name} -persist {server} {port} /dev/nbd$number >/dev/null && break
    sleep 0.5
done
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
    port = int(storage.run(_EXPORT.format(name=quoted, size=size)))
    for host in hosts:
        host.run(_ATTACH.format(name=quoted, server=STORAGE.name, port=port))
    return f"/dev/mapper/{name}"


def unshare_disk(storage: Host, hosts: Sequence[Host], name: str) -> None:
    """Remove a shared disk, wherever it is."""
    quoted = shlex.quote(name)
    for host in hosts:
        host.run(_DETACH.format(name=quoted))
    file = f"/srv/disks/{quoted}"
    storage.run(
        f"if test -e {file}.pid; then kill $(cat {file}.pid) || true; fi;"
        f" rm -f {file} {file}.conf {file}.pid"
    )
