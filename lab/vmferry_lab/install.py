"""Vmferry from a checkout, as a virtual environment that fits the hosts' Python.

It is assembled on this machine, where that takes seconds: what vmferry depends on becomes a disk
that every host shows read-only below ``/opt/vmferry``, vmferry itself is copied on top.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vmferry_lab.commands import run
from vmferry_lab.errors import LabError, Missing
from vmferry_lab.host import Host
from vmferry_lab.image import mke2fs

__all__ = ["PREFIX", "Environment"]

PREFIX = "/opt/vmferry"
"""The environment's folder on a host."""

_PYTHON = "3.11"
"""Python of Debian 12."""

_SITE = f"lib/python{_PYTHON}/site-packages"

_PLATFORMS = ("manylinux_2_36_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64")
"""What wheels may be built for; Debian 12 has glibc 2.36."""

_DISK_SIZE = 1 << 30
"""Bytes of the file system with the dependencies; the file is sparse."""


@dataclass(frozen=True)
class Environment:
    """The environment for one checkout.

    Attributes:
        checkout: the folder with vmferry's ``pyproject.toml``.
        cache: where the dependencies are kept between runs.

    """

    checkout: Path
    cache: Path

    @cached_property
    def _project(self) -> dict[str, Any]:
        path = self.checkout / "pyproject.toml"
        if not path.exists():
            raise LabError(f"{self.checkout} is no checkout of vmferry: it has no pyproject.toml")
        return tomllib.loads(path.read_text())

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that change with what vmferry depends on."""
        parts = [_PYTHON, *_PLATFORMS, *self._dependencies()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def _dependencies(self) -> list[str]:
        wanted: list[str] = self._project["project"]["dependencies"]
        return wanted

    def dependencies(self) -> Path:
        """A folder, and beside it a disk, with what vmferry depends on; made once per list.

        Raises:
            CommandFailed: pip found no wheel for Debian 12, or no package index.

        """
        target = self.cache / f"dependencies-{self.key}"
        if not target.is_dir():
            making = self.cache / "dependencies.building"
            shutil.rmtree(making, ignore_errors=True)
            _pip_install(making / _SITE, self._dependencies())
            (making / "dependencies").write_text(self.key)
            self._make_disk(making, target.with_suffix(".img"))
            making.rename(target)
        return target

    def disk(self) -> Path:
        """The disk of :meth:`dependencies`: ext4, to be mounted read-only."""
        return self.dependencies().with_suffix(".img")

    @staticmethod
    def _make_disk(folder: Path, disk: Path) -> None:
        with disk.open("wb") as file:
            file.truncate(_DISK_SIZE)
        run(mke2fs(folder, disk))

    def build(self, scratch: Path) -> Path:
        """A folder with vmferry itself and the environment's frame, made anew in ``scratch``.

        Raises:
            CommandFailed: the wheel cannot be built.

        """
        tree = scratch / "tree"
        _pip_install(tree / _SITE, ["--no-deps", str(self._wheel(scratch))])
        (tree / _SITE / "bin").rename(tree / "bin")
        for script in (tree / "bin").iterdir():
            script.write_text(f"#!{PREFIX}/bin/python\n" + script.read_text().split("\n", 1)[1])
        for name in ("python", "python3"):
            (tree / "bin" / name).symlink_to(f"/usr/bin/python{_PYTHON}")
        (tree / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        return tree

    def _wheel(self, folder: Path) -> Path:
        """Built by hatchling as it is installed here, else by pip in a scratch environment."""
        backend = [] if importlib.util.find_spec("hatchling") is None else ["--no-build-isolation"]
        _pip("wheel", "--no-deps", *backend, "--wheel-dir", str(folder), str(self.checkout))
        return next(folder.glob("vmferry-*.whl"))

    def deploy(self, host: Host, tree: Path) -> None:
        """Put a built tree into a host in place of what it has of vmferry.

        Dependencies are copied only if the host's disk has others, which takes a minute.
        """
        if host.run(f"cat {PREFIX}/dependencies 2>/dev/null || true").strip() != self.key:
            host.put(self.dependencies(), PREFIX)
        packages = self._project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        names = [Path(package).name for package in packages] + ["vmferry-*.dist-info"]
        host.run("rm -rf " + " ".join(f"{PREFIX}/{_SITE}/{name}" for name in names))
        host.put(tree, PREFIX)


def _pip_install(target: Path, what: list[str]) -> None:
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    version = ["--python-version", _PYTHON, "--implementation", "cp"]
    _pip("install", "--only-binary=:all:", *version, *platforms, "--target", str(target), *what)


def _pip(command: str, *arguments: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise Missing(f"{sys.executable} has no pip; try: apt install python3-pip, or a venv")
    run([sys.executable, "-m", "pip", command, "-q", "--disable-pip-version-check", *arguments])
