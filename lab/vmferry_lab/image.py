"""The hosts' image: Debian packages into a root file system, once per recipe."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmferry_lab.commands import run
from vmferry_lab.recipe import EXCLUDED, ROOTFS, Recipe

__all__ = ["FIO_LIBRARIES", "HOST_MODULES", "Image", "build", "find", "mke2fs"]

_SIZE = 8 << 30
"""Bytes of the root file system; the file is sparse."""

_UUID = "6c616221-0000-4000-8000-000000000001"

_UNUSED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "getty@tty1.service",
    "lvm2-monitor.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "sys-fs-fuse-connections.mount",
    "systemd-binfmt.service",
    "systemd-network-generator.service",
    "systemd-networkd-wait-online.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "xendomains.service",  # it would start guests that were saved
)
"""Units that no host here needs; each would cost a second or more of a boot."""

_FOLDERS = (
    "/opt/dependencies",
    "/opt/vmferry",
    "/srv/disks",
    "/srv/guest",
    "/srv/vmferry/upper",
    "/srv/vmferry/work",
    "/var/log/xen/console",
)

_SETUP = (
    "systemctl --root=$1 enable lab-seed.service lab-bridge.service >/dev/null",
    "systemctl --root=$1 enable systemd-networkd.service >/dev/null",
    f"systemctl --root=$1 mask {' '.join(_UNUSED)} >/dev/null",
    "echo 'XENCONSOLED_ARGS=\"--log=guest --log-dir=/var/log/xen/console\"' >> $1/etc/default/xen",
    "chroot $1 passwd --quiet --delete root",  # for its console; sshd takes keys alone
    "rm -f $1/etc/ssh/ssh_host_*",
    "rm -rf $1/var/lib/apt/lists/* $1/var/cache/apt/*",
    f"cd $1 && mkdir -p {' '.join('.' + folder for folder in _FOLDERS)}",
    "ln -s /opt/vmferry/bin/migrate $1/usr/local/bin/migrate",
)
"""Shell lines run over the finished root, whose path is ``$1``."""

HOST_MODULES = (
    *("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev"),
    *("virtio_pci", "virtio_blk", "crc16", "mbcache", "jbd2", "crc32c_generic", "ext4"),
)
"""What a host's kernel loads before it can read its root file system, in this order."""

FIO_LIBRARIES = (
    "ld-linux-x86-64.so.2",
    "libaio.so.1",
    "libc.so.6",
    "libm.so.6",
    "libnuma.so.1",
    "libz.so.1",
)
"""Libraries that fio calls when it reads and writes a block device."""

_TAKEN = {
    **{f"{name}.ko": ("", f"/{name}.ko") for name in HOST_MODULES},
    "vmlinuz": ("boot/vmlinuz-", ""),
    "xen.gz": ("boot/xen-4.17-amd64.gz", ""),
    "busybox": ("bin/busybox", ""),
    "xen-blkfront.ko": ("", "/xen-blkfront.ko"),
    "xen-netfront.ko": ("", "/xen-netfront.ko"),
    "fio": ("bin/fio", "/fio"),
    **{name: (f"lib/x86_64-linux-gnu/{name}", "") for name in FIO_LIBRARIES},
}
"""Files taken out of the root, by how their paths begin and end."""


@dataclass(frozen=True)
class Image:
    """A finished image's folder."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system, raw; hosts boot from overlays of it and never write it."""
        return self.folder / "disk.raw"

    @property
    def packages(self) -> Path:
        """A list of every package in it with its version."""
        return self.folder / "packages.txt"

    def part(self, name: str) -> Path:
        """One of the files taken out of it: ``vmlinuz``, ``busybox``, ``xen``, ..."""
        return self.folder / name


def find(cache: Path, recipe: Recipe) -> Image | None:
    """The finished image of a recipe, if there is one."""
    folder = cache / f"image-{recipe.key}"
    return Image(folder) if folder.is_dir() else None


def build(cache: Path, recipe: Recipe, log: Path) -> Image:
    """Make the image of a recipe; takes minutes and needs the Debian mirror.

    A build that fails or is ended leaves nothing under the image's own name.

    Raises:
        CommandFailed: a step failed; the log has all that was said.

    """
    cache.mkdir(parents=True, exist_ok=True)
    with _scratch(cache) as work:
        _bootstrap(recipe, work / "root.tar", log)
        out = work / "image"
        out.mkdir()
        _unpack_parts(work / "root.tar", out)
        _make_disk(work, out / "disk.raw")
        final = cache / f"image-{recipe.key}"
        out.rename(final)
    return Image(final)


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _bootstrap(recipe: Recipe, target: Path, log: Path) -> None:
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    hooks = [f"--customize-hook={line}" for line in _SETUP]
    run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(recipe.packages)}",
            '--aptopt=Acquire::Languages "none"',
            *options,
            f"--essential-hook=tar -C '{ROOTFS}' -c . | tar -C \"$1\" -x --no-same-owner",
            *hooks,
            recipe.suite,
            str(target),
            recipe.mirror,
        ],
        timeout=3600,
        log=log,
    )


def _unpack_parts(archive: Path, out: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            path = member.name.removeprefix("./").removeprefix("usr/")
            for name, (start, end) in _TAKEN.items():
                if member.isfile() and path.startswith(start) and path.endswith(end):
                    _copy(tar, member, out / name)
            if path == "var/lib/dpkg/status":
                _copy(tar, member, out / "status")
    (out / "xen").write_bytes(gzip.decompress((out / "xen.gz").read_bytes()))
    (out / "xen.gz").unlink()
    (out / "packages.txt").write_text(_versions((out / "status").read_text()))
    (out / "status").unlink()


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # a regular file
    with source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _versions(status: str) -> str:
    lines = []
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line[:20])
        if "Package" in fields:
            lines.append(f"{fields['Package']} {fields.get('Version', '?')}\n")
    return "".join(sorted(lines))


def _make_disk(work: Path, disk: Path) -> None:
    """A file system from the archive: as root, or as if it were (fakeroot) for owners."""
    root = work / "root"
    root.mkdir()
    with disk.open("wb") as file:
        file.truncate(_SIZE)
    filesystem = shlex.join(mke2fs(root, disk))
    script = f'tar -C "$1" -xf "$2" && {filesystem} && rm -rf "$1"'
    shell = ["sh", "-c", script, "sh", str(root), str(work / "root.tar")]
    run(shell if os.geteuid() == 0 else ["fakeroot", "--", *shell])


def mke2fs(folder: Path, disk: Path) -> list[str]:
    """The command that makes a sparse file into a file system with a folder's content."""
    return [
        *("mke2fs", "-q", "-t", "ext4", "-m", "0", "-U", _UUID),
        *("-E", "assume_storage_prezeroed=1,lazy_itable_init=1,lazy_journal_init=1"),
        *("-d", str(folder), str(disk)),
    ]
