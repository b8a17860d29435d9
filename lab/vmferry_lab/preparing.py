"""The ``run`` folder of a laboratory: what its hosts boot from."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from vmferry_lab.commands import run
from vmferry_lab.image import Image, mke2fs
from vmferry_lab.keys import Keys, make_keys
from vmferry_lab.layout import STORAGE, Layout, Place
from vmferry_lab.machine import Shape, command_line
from vmferry_lab.seed import write_seed

__all__ = ["Plan", "prepare"]

_GUEST_DISK_SIZE = 256 << 20
"""Bytes of the file system with guests' kernel and initrd; the file is sparse."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to boot.

    Attributes:
        layout: the laboratory's paths.
        places: its hosts.
        image: the disk they start from.
        host_initrd: what mounts it.
        initrd: the guests' initrd.
        kernel: the guests' kernel.
        fio: what goes behind the guests' initrd for fio; ``None`` if the image has none.
        dependencies: the disk with what vmferry depends on.
        flavours: names of the image's further packages.

    """

    layout: Layout
    places: list[Place]
    image: Image
    host_initrd: Path
    initrd: Path
    kernel: Path
    dependencies: Path
    flavours: frozenset[str]
    fio: Path | None = None

    def command_line(self, name: str, port: int) -> list[str]:
        """QEMU's arguments for one of the hosts."""
        place = next(place for place in self.places if place.name == name)
        others = [other.name for other in self.places if other is not place]
        if place is STORAGE:
            shape = Shape(xen=False, memory=512)
            return command_line(place, shape, ssh_port=port, peers=others, hub=True)
        peer = STORAGE.name if STORAGE in self.places else others[0]
        return command_line(place, Shape(), ssh_port=port, peers=[peer])


def prepare(plan: Plan) -> None:
    """Make the ``run`` folder anew: seeds, overlays, the ports of the ways in."""
    layout = plan.layout
    shutil.rmtree(layout.run, ignore_errors=True)
    for folder in (layout.run, layout.logs):
        folder.mkdir(parents=True, exist_ok=True)
    keys = make_keys(layout.keys, plan.places)
    _link(plan)
    _make_guest_disk(plan)
    for place in plan.places:
        _prepare_host(plan, place, keys)
    ports = {place.name: _free_port() for place in plan.places}
    layout.state.write_text(json.dumps({"ports": ports, "flavours": sorted(plan.flavours)}))


def _link(plan: Plan) -> None:
    """Names in the ``run`` folder: QEMU splits some of its arguments at commas and spaces."""
    parts = {part: plan.image.part(part) for part in ("vmlinuz", "xen")}
    made = {"initrd.img": plan.host_initrd, "dependencies.img": plan.dependencies}
    for name, path in {**parts, **made}.items():
        (plan.layout.run / name).symlink_to(os.path.relpath(path, plan.layout.run))


def _make_guest_disk(plan: Plan) -> None:
    """The disk that hosts mount for guests' kernel and initrd, so that none has to copy them."""
    folder = plan.layout.run / "guest"
    folder.mkdir()
    shutil.copyfile(plan.kernel, folder / "vmlinuz")
    shutil.copyfile(plan.initrd, folder / "initrd.img")
    if plan.fio:
        shutil.copyfile(plan.fio, folder / "fio.img")
    disk = plan.layout.run / "guest.img"
    with disk.open("wb") as file:
        file.truncate(_GUEST_DISK_SIZE)
    run(mke2fs(folder, disk))
    shutil.rmtree(folder)


def _prepare_host(plan: Plan, place: Place, keys: Keys) -> None:
    folder = plan.layout.run
    seed = folder / f"{place.name}.seed"
    write_seed(seed, place, plan.places, keys)
    backing = os.path.relpath(plan.image.disk, folder)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing]
    run([*create, f"{place.name}.qcow2"], cwd=folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
