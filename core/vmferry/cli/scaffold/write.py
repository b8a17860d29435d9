"""Putting a project on the disk: all of it, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from vmferry.cli.scaffold.render import Project
from vmferry.errors import InputError

__all__ = ["write"]


def write(project: Project, folder: Path) -> None:
    """Make ``folder`` with the project in it.

    Raises:
        InputError: something is there already, or it cannot be made there. Nothing was written.

    """
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already; choose another --folder")
    if not folder.parent.is_dir():
        raise InputError(f"{folder.parent} is no folder; make it first")
    try:
        _make(project, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}") from error


def _make(project: Project, folder: Path) -> None:
    """Write beside the folder, then rename: ``rename(2)`` refuses a folder that is not empty."""
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, text in project.files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        made.chmod(0o777 & ~_umask())
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _umask() -> int:
    """The process's mask, which can only be read by setting it (``umask(2)``)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
