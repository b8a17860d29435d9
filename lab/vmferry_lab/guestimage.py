"""The guests' initrd: busybox, Xen's front ends, and the writer, compiled here."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from vmferry_lab.commands import run
from vmferry_lab.cpio import Initrd
from vmferry_lab.image import Image

__all__ = ["GUEST", "build_initrd"]

GUEST = Path(__file__).parent.parent / "guest"
"""The sources of what runs in a guest."""

_MODULES = ("xen-blkfront.ko", "xen-netfront.ko")


def build_initrd(cache: Path, image: Image) -> Path:
    """The initrd that belongs to an image; made when it or a source of it is new.

    Raises:
        CommandFailed: the writer does not compile.
        Missing: there is no gcc.

    """
    target = cache / f"guest-{_key(image)}.img"
    if not target.exists():
        writer = _compile(cache / "writer.building")
        making = target.with_suffix(".building")
        making.write_bytes(_pack(image, writer))
        making.rename(target)
    return target


def _sources() -> list[Path]:
    return sorted(GUEST.glob("*.[ch]"))


def _key(image: Image) -> str:
    digest = hashlib.sha256(image.folder.name.encode())
    for path in [*_sources(), GUEST / "init"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _compile(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sources = [str(path) for path in _sources() if path.suffix == ".c"]
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s"]
        run(["gcc", *flags, "-o", str(folder / "writer"), *sources])
        return (folder / "writer").read_bytes()
    finally:
        shutil.rmtree(folder)


def _pack(image: Image, writer: bytes) -> bytes:
    initrd = Initrd()
    for folder in ("bin", "dev", "lib", "proc", "sys"):
        initrd.folder(folder)
    initrd.file("bin/busybox", image.part("busybox").read_bytes(), 0o755)
    initrd.link("bin/sh", "busybox")
    for module in _MODULES:
        initrd.file(f"lib/{module}", image.part(module).read_bytes())
    initrd.file("bin/writer", writer, 0o755)
    initrd.file("init", (GUEST / "init").read_bytes(), 0o755)
    return initrd.packed()
