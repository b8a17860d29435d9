"""The hosts' initrd: loads what the root file system needs, and gives over to it.

Debian's own looks at every device that there is, which takes an emulated host half a minute.
"""

from __future__ import annotations

from pathlib import Path

from vmferry_lab.cpio import Initrd
from vmferry_lab.image import HOST_MODULES, Image

__all__ = ["build_host_initrd"]

_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do
    /bin/busybox insmod /lib/$module.ko
done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""


def build_host_initrd(cache: Path, image: Image) -> Path:
    """The initrd that belongs to an image; made once."""
    target = cache / f"host-initrd-{image.folder.name.removeprefix('image-')}"
    if not target.exists():
        making = target.with_suffix(".building")
        making.write_bytes(_pack(image))
        making.rename(target)
    return target


def _pack(image: Image) -> bytes:
    initrd = Initrd()
    for folder in ("bin", "dev", "lib", "root"):
        initrd.folder(folder)
    initrd.file("bin/busybox", image.part("busybox").read_bytes(), 0o755)
    for module in HOST_MODULES:
        initrd.file(f"lib/{module}.ko", image.part(f"{module}.ko").read_bytes())
    initrd.file("init", _INIT.format(modules=" ".join(HOST_MODULES)).encode(), 0o755)
    return initrd.packed()
