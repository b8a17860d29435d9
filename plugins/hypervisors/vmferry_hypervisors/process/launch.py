"""Starting a guest's process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vmferry.errors import HypervisorError
from vmferry_hypervisors.process.folder import Definition, GuestFolder
from vmferry_hypervisors.process.memory import create_memory

__all__ = ["environment", "launch"]

_PATIENCE = 60.0


def environment() -> dict[str, str]:
    """What a process that outlives its parent gets of the parent's environment."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    return {**kept, "OPENBLAS_NUM_THREADS": "1"}


def launch(state: Path, definition: Definition, *, incoming: bool = False) -> GuestFolder:
    """Make a guest's files and start its process; on return it runs, or waits if ``incoming``.

    Blocks for the time Python takes to start. On failure nothing is left behind.

    Raises:
        HypervisorError: the name is taken, or the process could not begin; says why.

    """
    folder = GuestFolder(state, definition.name)
    fresh = not folder.console.exists()
    try:
        folder.define(definition, incoming=incoming)
    except FileExistsError:
        raise HypervisorError(f"a guest named {definition.name} exists in {state}") from None
    try:
        create_memory(folder.path, definition.memory)
        _run(folder.path, incoming=incoming)
    except BaseException:
        folder.kill()
        folder.remove(console=fresh)
        raise
    return folder


def _run(folder: Path, *, incoming: bool) -> None:
    command = [sys.executable, "-m", "vmferry_hypervisors.process.guest", str(folder)]
    result = subprocess.run(
        command + ["--incoming"] * incoming,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=_PATIENCE,
        check=False,
    )
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise HypervisorError(f"guest {folder.name} did not start: {reason}")
