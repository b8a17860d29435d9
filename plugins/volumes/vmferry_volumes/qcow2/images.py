"""Images examined, made and removed, by qemu-img(1)."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec

from vmferry.api.volume import Geometry
from vmferry.errors import VolumeError, VolumeExists, VolumeGeometry
from vmferry_support.commands import CommandFailed, run
from vmferry_support.outlast import finished
from vmferry_volumes.making import check_new, remove_disk
from vmferry_volumes.paths import explained, is_device, usable
from vmferry_volumes.threads import acquire, in_thread

__all__ = ["check_new_image", "examine", "make_image", "node", "remove_image"]


class _Specific(msgspec.Struct, frozen=True, rename="kebab"):
    data_file: str = ""
    corrupt: bool = False


class _Format(msgspec.Struct, frozen=True):
    data: _Specific = _Specific()


class _Info(msgspec.Struct, frozen=True, rename="kebab"):
    """What ``qemu-img info`` says, as far as it matters."""

    virtual_size: int
    backing_filename: str = ""
    backing_filename_format: str = ""
    encrypted: bool = False
    format_specific: _Format = _Format()


async def examine(path: str, sector: int, *, flatten: bool) -> Geometry:
    """Geometry of the image at ``path``; takes no lock.

    Args:
        path: of the image.
        sector: sector size that it is given.
        flatten: a backing file is allowed.

    Raises:
        VolumeMissing: there is nothing.
        VolumeGeometry: it is no qcow2 image, or none that can be a disk.
        VolumeError: it has a backing file and may not, or is of a kind that is not served.

    """
    await in_thread(_check_file, path)
    try:
        said = await run("qemu-img", "info", "-U", "-f", "qcow2", "--output=json", full(path))
    except CommandFailed as error:
        raise VolumeGeometry(
            f"{path} is no sound qcow2 image: {error.complaint.strip()}"
        ) from error
    info = msgspec.convert(json.loads(said), _Info)
    _check_kind(path, info, flatten=flatten)
    if not info.virtual_size or info.virtual_size % sector:
        raise VolumeGeometry(
            f"{path} is a disk of {info.virtual_size} bytes, which is not a whole number of "
            f"{sector}-byte sectors"
        )
    return Geometry(info.virtual_size, sector)


def node(path: str, *, write: bool, flatten: bool) -> dict[str, Any]:
    """The image as a block node for QEMU; nobody is locked out by a reader."""
    described: dict[str, Any] = {
        "driver": "qcow2",
        "discard": "unmap",
        "read-only": not write,
        "force-share": not write,
        "file": {"driver": "file", "filename": full(path), "discard": "unmap"},
    }
    if not flatten:
        described["backing"] = None  # also if it was given one since it was examined
    return described


async def check_new_image(path: str, geometry: Geometry) -> None:
    """Raise why there can be no new image of ``geometry`` at ``path``."""
    if await in_thread(check_new, path, geometry, preallocate=False):
        raise VolumeExists(
            f"{path} is a block device; a qcow2 image is made as a file, or use the volume raw"
        )


async def make_image(path: str, geometry: Geometry, cluster: int) -> None:
    """Make an image, readable by its owner alone, durably; nothing is left when it fails."""
    await check_new_image(path, geometry)
    await acquire(lambda: _claim_name(path), lambda _: remove_disk(path))
    try:
        options = f"cluster_size={cluster},compat=1.1"
        size = str(geometry.size)
        await run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, full(path), size)
        await in_thread(_sync, path)
    except BaseException as error:
        await finished(remove_image(path))
        if isinstance(error, CommandFailed):
            raise VolumeError(f"{path} cannot be made: {error.complaint.strip()}") from error
        raise


async def remove_image(path: str) -> None:
    """Delete it, if it is there."""
    await in_thread(remove_disk, path)


def full(path: str) -> str:
    """``path`` so that QEMU takes it for nothing but one: neither ``nbd:`` nor ``json:``."""
    return os.path.abspath(path)


def _check_file(path: str) -> None:
    with explained(path):
        is_device(path, os.stat(usable(path)))


def _check_kind(path: str, info: _Info, *, flatten: bool) -> None:
    backing = info.backing_filename
    if backing and not flatten:
        raise VolumeError(
            f"{path} has the backing file {backing!r}; set backing=flatten to read through it, "
            "if you trust the image not to name a file of somebody else's"
        )
    if backing and not info.backing_filename_format:
        raise VolumeError(
            f"{path} does not say which format its backing file {backing!r} has; "
            f"set it by `qemu-img rebase -u -b {backing} -F FORMAT {path}`"
        )
    if info.encrypted:
        raise VolumeError(f"{path} is encrypted, which is not supported; decrypt it by qemu-img")
    if info.format_specific.data.data_file:
        raise VolumeError(
            f"{path} keeps its data in another file, which is not supported; convert it by qemu-img"
        )
    if info.format_specific.data.corrupt:
        raise VolumeError(f"{path} is marked corrupt; repair it by `qemu-img check -r all`")


def _claim_name(path: str) -> None:
    with explained(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _sync(path: str) -> None:
    for place in (path, os.path.dirname(path) or "."):
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
