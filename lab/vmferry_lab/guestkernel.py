"""The guests' kernel: Debian's, unpacked, since an emulated host takes long to unpack it."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

from vmferry_lab.errors import LabError
from vmferry_lab.image import Image

__all__ = ["build_kernel", "unpacked"]

_SECTOR = 512
_SETUP_SECTORS, _PAYLOAD = 0x1F1, 0x248  # Linux, Documentation/arch/x86/boot.rst


def build_kernel(cache: Path, image: Image) -> Path:
    """The unpacked kernel that belongs to an image; made once.

    Raises:
        LabError: the image's kernel is not packed as Debian packs it.

    """
    target = cache / f"guest-kernel-{image.folder.name.removeprefix('image-')}"
    if not target.exists():
        making = target.with_suffix(".building")
        making.write_bytes(unpacked(image.part("vmlinuz").read_bytes()))
        making.rename(target)
    return target


def unpacked(packed: bytes) -> bytes:
    """The ELF file inside a ``bzImage``; the size that ends its payload is not part of it.

    Raises:
        LabError: there is none, or it is packed otherwise than by xz.

    """
    try:
        offset, length = struct.unpack_from("<II", packed, _PAYLOAD)
        begin = ((packed[_SETUP_SECTORS] or 4) + 1) * _SECTOR + offset
        kernel = lzma.decompress(packed[begin : begin + length - 4])
    except (struct.error, IndexError, lzma.LZMAError) as error:
        raise LabError(f"the guests' kernel cannot be unpacked: {error}") from error
    if not kernel.startswith(b"\x7fELF"):
        raise LabError("the guests' kernel is no ELF file")
    return kernel
