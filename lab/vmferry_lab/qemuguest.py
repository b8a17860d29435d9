"""What a QEMU guest that runs fio boots from: one kernel and one initrd, in a folder of the cache.

They are those of the Xen guests, but for the modules that are loaded.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from vmferry_lab.errors import LabError
from vmferry_lab.guestfio import build_fio, digest_scripts
from vmferry_lab.guestimage import VIRTIO, digest_sources, pack_initrd
from vmferry_lab.guestkernel import unpacked
from vmferry_lab.image import Image
from vmferry_lab.recipe import Recipe

__all__ = ["FLAVOURS", "QemuGuest", "build_guest", "find_guest"]

FLAVOURS = ("fio",)
"""Of the image that its parts are taken from."""


class QemuGuest(NamedTuple):
    """Two files: what ``-kernel`` and ``-initrd`` name. A job goes behind the initrd."""

    kernel: Path
    initrd: Path


def find_guest(cache: Path) -> QemuGuest | None:
    """The guest that belongs to this checkout, if it was built."""
    folder = _folder(cache)
    return QemuGuest(folder / "vmlinuz", folder / "initrd.img") if folder.is_dir() else None


def build_guest(cache: Path, image: Image) -> QemuGuest:
    """Make the guest from an image's parts, in place of one of another checkout.

    Raises:
        LabError: the image has no fio, or its kernel is not packed as Debian packs it.
        CommandFailed: something does not compile.
        Missing: there is no gcc.

    """
    fio = build_fio(cache, image)
    if fio is None:
        raise LabError(f"the image {image.folder} has no fio")
    target = _folder(cache)
    making = cache / "guest-qemu.building"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    (making / "vmlinuz").write_bytes(unpacked(image.part("vmlinuz").read_bytes()))
    initrd = pack_initrd(image, VIRTIO, making / "writer")
    (making / "initrd.img").write_bytes(initrd + fio.read_bytes())
    for old in cache.glob("guest-qemu-*"):
        shutil.rmtree(old)
    making.rename(target)
    return QemuGuest(target / "vmlinuz", target / "initrd.img")


def _folder(cache: Path) -> Path:
    """Named after all that makes another guest, but for what the mirror had when it was built."""
    key = digest_sources(" ".join([digest_scripts(Recipe.of(FLAVOURS).key), *VIRTIO]))
    return cache / f"guest-qemu-{key}"
