"""A run's folder, and the removal of what a run that was killed has left.

Everything a run starts has the path of the run's folder in its command line, and the folder's name
is one of its own. So what is left of a run is found, whatever became of its parent, and nothing
else is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmferry.errors import InputError

__all__ = ["clean", "end_processes", "remove_abandoned", "run_folder"]

_PREFIX = "vmx-"
_OWNER = "owner"
_LONGEST = 64
"""Characters of a folder below which sockets are made: a socket's path has 107 (``unix(7)``)."""
_PATIENCE = 10.0


@contextmanager
def run_folder(parent: str = "") -> Iterator[Path]:
    """A new folder; at the end its processes are ended and it is removed.

    Raises ``InputError`` if it cannot be made, or its path is too long for sockets.
    """
    base = Path(parent or tempfile.gettempdir()).resolve()
    folder = base / f"{_PREFIX}{secrets.token_hex(6)}"
    if len(str(folder)) > _LONGEST:
        raise InputError(f"the path of {base} is too long: sockets below it could have no name")
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise InputError(f"cannot make a folder in {base}: {error.strerror}") from error
    try:
        (folder / _OWNER).write_text(_identity(os.getpid()))
        yield folder
    finally:
        clean(folder)


def clean(folder: Path) -> None:
    """End what runs on a run's folder, and remove it."""
    end_processes(str(folder))
    shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: str = "") -> list[Path]:
    """Clean up after runs whose process is gone; returns their folders."""
    base = Path(parent or tempfile.gettempdir()).resolve()
    gone = [folder for folder in sorted(base.glob(f"{_PREFIX}*")) if _abandoned(folder)]
    for folder in gone:
        clean(folder)
    return gone


def _abandoned(folder: Path) -> bool:
    try:
        if folder.stat().st_uid != os.geteuid():
            return False
        owner = (folder / _OWNER).read_text()
    except OSError:
        return False
    pid = owner.partition(" ")[0]
    return not pid.isdigit() or _identity(int(pid)) != owner


def _identity(pid: int) -> str:
    """Number and start of a process: the number alone may be another's by now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return f"{pid} {stat.rpartition(')')[2].split()[19]}"


def end_processes(path: str) -> None:
    """Kill every process with ``path`` in its command line; returns when they are gone."""
    until = time.monotonic() + _PATIENCE
    while (found := _processes(path)) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes(path: str) -> list[int]:
    wanted, own = path.encode(), os.getpid()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "cmdline").read_bytes() and not _dead(entry):
                found.append(int(entry.name))
    return found


def _dead(entry: Path) -> bool:
    """Whether a process has ended and only waits for its parent to notice."""
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
