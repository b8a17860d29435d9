"""The guests' initrd: busybox, the drivers of a hypervisor, and the writer, compiled here."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from vmferry_lab.commands import run
from vmferry_lab.cpio import Initrd
from vmferry_lab.image import Image

__all__ = ["GUEST", "VIRTIO", "XEN", "build_initrd", "digest_sources", "pack_initrd"]

GUEST = Path(__file__).parent.parent / "guest"
"""The sources of what runs in a guest."""

XEN = ("xen-blkfront", "xen-netfront")
"""What a guest's kernel loads under Xen."""

VIRTIO = (
    *("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev"),
    *("virtio_pci", "virtio_blk"),
)
"""What it loads under QEMU, in this order."""


def build_initrd(cache: Path, image: Image) -> Path:
    """The initrd that belongs to an image, for Xen; made when it or a source of it is new.

    Raises:
        CommandFailed: the writer does not compile.
        Missing: there is no gcc.

    """
    target = cache / f"guest-{_key(image)}.img"
    if not target.exists():
        making = target.with_suffix(".building")
        making.write_bytes(pack_initrd(image, XEN, cache / "writer.building"))
        making.rename(target)
    return target


def digest_sources(seed: str) -> str:
    """Twelve hexadecimal digits that change with ``seed`` and with a source of the initrd."""
    digest = hashlib.sha256(seed.encode())
    for path in [*_sources(), GUEST / "init"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def pack_initrd(image: Image, modules: Sequence[str], scratch: Path) -> bytes:
    """An initrd with the modules of an image, which are loaded in this order.

    Args:
        image: what everything but the writer is from.
        modules: their names.
        scratch: a folder that is made for the compiler and removed.

    Raises:
        CommandFailed: the writer does not compile.
        Missing: there is no gcc.

    """
    writer = _compile(scratch)
    initrd = Initrd()
    for folder in ("bin", "dev", "lib", "lib/modules", "proc", "sys"):
        initrd.folder(folder)
    initrd.file("bin/busybox", image.part("busybox").read_bytes(), 0o755)
    initrd.link("bin/sh", "busybox")
    for number, module in enumerate(modules):
        content = image.part(f"{module}.ko").read_bytes()
        initrd.file(f"lib/modules/{number}-{module}.ko", content)
    initrd.file("bin/writer", writer, 0o755)
    initrd.file("init", (GUEST / "init").read_bytes(), 0o755)
    return initrd.packed()


def _key(image: Image) -> str:
    return digest_sources(" ".join([image.folder.name, *XEN]))


def _sources() -> list[Path]:
    return sorted(GUEST.glob("*.[ch]"))


def _compile(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sources = [str(path) for path in _sources() if path.suffix == ".c"]
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s"]
        run(["gcc", *flags, "-o", str(folder / "writer"), *sources])
        return (folder / "writer").read_bytes()
    finally:
        shutil.rmtree(folder)
