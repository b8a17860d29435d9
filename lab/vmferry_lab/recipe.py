"""What the hosts' image is made of, and the key under which a finished one is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmferry_lab.errors import LabError

__all__ = ["BASE", "EXCLUDED", "FLAVOURS", "ROOTFS", "Recipe"]

ROOTFS = Path(__file__).parent / "rootfs"
"""Files that go into the image as they are."""

BASE = (
    "busybox-static",
    "ca-certificates",
    "dmsetup",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-amd64",
    "lvm2",
    "mount",
    "nbd-client",
    "openssh-client",
    "openssh-server",
    "procps",
    "psmisc",
    "python3",
    "python3-venv",
    "systemd-sysv",
    "thin-provisioning-tools",
    "udev",
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xenstore-utils",
)
"""Debian packages of every image: Xen, and the programs that vmferry's plugins run."""

FLAVOURS = {
    "drbd": ("drbd-utils",),
    "fio": ("fio",),
    "qdisk": ("qemu-system-xen", "qemu-utils"),
    "rdma": ("rdma-core", "ibverbs-providers", "ibverbs-utils", "perftest", "python3-pyverbs"),
    "storage": ("nbd-server",),
}
"""Further packages by the name they are asked for with."""

EXCLUDED = (
    "/etc/kernel/postinst.d/initramfs-tools",
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/lib/modules/*/kernel/drivers/gpu/*",
    "/lib/modules/*/kernel/drivers/iio/*",
    "/lib/modules/*/kernel/drivers/media/*",
    "/lib/modules/*/kernel/drivers/net/ethernet/*",
    "/lib/modules/*/kernel/drivers/net/wireless/*",
    "/lib/modules/*/kernel/drivers/scsi/*",
    "/lib/modules/*/kernel/drivers/usb/*",
    "/lib/modules/*/kernel/net/mac80211/*",
    "/lib/modules/*/kernel/net/wireless/*",
    "/lib/modules/*/kernel/sound/*",
)
"""Files of the packages that no host here needs; without them an image is half as large, and no
initrd is made that none would use."""

_FORMAT = 4
"""Raised when images of an older recipe no longer do, though the packages are the same."""


@dataclass(frozen=True)
class Recipe:
    """One image, before it is made."""

    flavours: frozenset[str] = frozenset()
    suite: str = "bookworm"
    mirror: str = "http://deb.debian.org/debian"

    @classmethod
    def of(cls, flavours: Iterable[str], mirror: str | None = None) -> Recipe:
        """A recipe with these flavours.

        Raises:
            LabError: there is no such flavour; lists those there are.

        """
        asked = frozenset(flavours)
        if unknown := sorted(asked - FLAVOURS.keys()):
            raise LabError(
                f"no flavour {', '.join(unknown)} of the image; there are {', '.join(FLAVOURS)}"
            )
        return cls(asked, mirror=mirror or cls.mirror)

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages, sorted; those they depend on come with them."""
        extra = {package for name in self.flavours for package in FLAVOURS[name]}
        return tuple(sorted({*BASE, *extra}))

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that change with anything that makes another image."""
        parts = [str(_FORMAT), self.suite, self.mirror, *self.packages, *EXCLUDED]
        digest = hashlib.sha256("\n".join(parts).encode())
        for path in sorted(ROOTFS.rglob("*")):
            if path.is_file():
                digest.update(f"\n{path.relative_to(ROOTFS)}\n".encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()[:12]
