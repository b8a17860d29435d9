"""Programs of this machine, run to their end."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmferry_lab.errors import CommandFailed, Missing

__all__ = ["run"]


def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    stdin: bytes = b"",
    timeout: float = 600.0,
    log: Path | None = None,
) -> str:
    """Run a program to its end and return what it wrote to stdout, decoded leniently.

    Args:
        argv: the program and its arguments; no shell is involved.
        cwd: the folder it runs in.
        stdin: what it reads.
        timeout: seconds after which it is killed.
        log: a file that gets what it writes to stderr, for programs that say much.

    Raises:
        Missing: there is no such program.
        CommandFailed: it ended with a code other than 0, or was killed.

    """
    try:
        done = subprocess.run(
            argv, cwd=cwd, input=stdin, capture_output=True, timeout=timeout, check=False
        )
    except FileNotFoundError:
        raise Missing(f"the program {argv[0]} is not installed") from None
    except subprocess.TimeoutExpired as late:
        raise CommandFailed(" ".join(argv), None, "", _text(late.stderr)) from None
    if log is not None:
        log.write_bytes(done.stderr)
    output, complaint = _text(done.stdout), _text(done.stderr)
    if done.returncode:
        raise CommandFailed(" ".join(argv), done.returncode, output, complaint)
    return output


def _text(said: bytes | None) -> str:
    return (said or b"").decode(errors="replace")
