"""The folder where an agent keeps its journal, its sockets and what else must be found again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click

from vmferry.errors import InputError

__all__ = ["private_folder", "state_option"]


def _default_state() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/vmferry")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "vmferry"


state_option = click.option(
    "--state-dir",
    envvar="VMFERRY_STATE",
    type=click.Path(file_okay=False, path_type=Path),
    default=_default_state,
    show_default="/var/lib/vmferry for root, else ~/.local/state/vmferry",
    help="Where the journal and the sockets of running jobs are.",
)


def private_folder(path: Path) -> Path:
    """Make ``path`` for this user alone; raises ``InputError`` if others could write there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat()
    except OSError as error:
        raise InputError(f"cannot make {path}: {error.strerror}; see --state-dir") from error
    if mode.st_uid != os.geteuid() or stat.S_IMODE(mode.st_mode) & 0o022:
        raise InputError(
            f"{path} belongs to somebody else or is writable by others; "
            "chmod it to 0700 or choose another --state-dir"
        )
    return path
