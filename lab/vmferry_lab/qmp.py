"""One command to QEMU's monitor (QMP, docs/interop/qmp-spec in QEMU)."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import IO

from vmferry_lab.errors import LabError

__all__ = ["ask"]


def ask(folder: Path, name: str, command: str, *, timeout: float = 30.0) -> object:
    """Connect, have one command without arguments carried out, return its answer.

    Raises:
        LabError: QEMU refused the command.
        OSError: nobody listens, or no answer came in time (seconds).

    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        _connect(client, folder, name)
        with client.makefile("rw", encoding="utf-8") as lines:
            lines.readline()  # the greeting
            _execute(lines, "qmp_capabilities")
            return _execute(lines, command)


def _connect(client: socket.socket, folder: Path, name: str) -> None:
    """Through an open folder: the path of a socket may have 107 bytes and no more."""
    here = os.open(folder, os.O_PATH)
    try:
        client.connect(f"/proc/self/fd/{here}/{name}")
    finally:
        os.close(here)


def _execute(lines: IO[str], command: str) -> object:
    lines.write(json.dumps({"execute": command}) + "\n")
    lines.flush()
    while line := lines.readline():
        answer = json.loads(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise LabError(f"QEMU refused {command}: {answer['error'].get('desc')}")
    raise LabError(f"QEMU ended before it answered {command}")
