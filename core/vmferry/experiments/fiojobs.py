"""Job files of fio(1) for the guest to run: read, and refused where they reach beyond its disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vmferry.errors import InputError
from vmferry.experiments.nearest import unknown
from vmferry.experiments.textfiles import read_text

__all__ = ["DISKS", "job_notes", "read_job"]

DISKS = ("/dev/vda", "/dev/xvda")
"""The names of the disk that fio works on, under QEMU and under Xen. A ``filename`` in a job must
be one of them, and either means that disk, so that one job file does for both."""

_MOST = 64 << 10
_ENGINES = ("io_uring", "libaio", "posixaio", "psync", "pvsync", "pvsync2", "sync", "vsync")
"""Those that read and write a block device; the guest's fio has no storage but that."""
_REFUSED = {
    "continue_on_error": "would hide what was lost",
    "directory": "makes use of files, and the guest has its disk",
    "exec_postrun": "runs another program",
    "exec_prerun": "runs another program",
    "filename_format": "makes use of files, and the guest has its disk",
    "ignore_error": "would hide what was lost",
    "include": "wants another file, and the guest has none",
    "opendir": "makes use of files, and the guest has its disk",
    "read_iolog": "wants another file; a workload's `trace` replays one",
    "verify_offset": "is what tells a pass from the one before, and is set for each",
    "verify_state_load": "wants another file, and the guest has none",
}
_PATIENCE = 20.0


class _Line(NamedTuple):
    """An option of a job file: its line's number, its section, key and value."""

    number: int
    section: str
    key: str
    value: str


def read_job(path: Path) -> str:
    """The text of a job file that a guest can run.

    Where fio is installed, it has parsed the file too.

    Raises:
        InputError: it cannot be read, is no job file, or has fio do something else than read and
            write the guest's disk; names the file, and the line if it is one.

    """
    text = read_text(path, _MOST)
    try:
        _check(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _parse(path)
    return text


def job_notes(text: str) -> tuple[str, ...]:
    """What a job that was read does not show about the disk, in words; nothing if it shows all."""
    lines = list(_lines(text))
    notes = []
    if not any(line.key == "verify" and line.value not in ("", "0", "null") for line in lines):
        notes.append("fio compares nothing: the job file has no `verify`")
    if any((line.key, line.value) == ("verify", "pattern") for line in lines):
        notes.append("fio cannot tell a lost write from the pass before: `verify` is pattern")
    if any((line.key, line.value) in (("direct", "0"), ("buffered", "1")) for line in lines):
        notes.append("fio may compare the guest's memory and not its disk: the job is buffered")
    return tuple(notes)


def _lines(text: str) -> Iterator[_Line]:
    """Every option; a line ``[NAME]`` gives a section's beginning with an empty key."""
    section = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
            yield _Line(number, section, "", "")
        elif line and line[0] not in "#;":
            key, _, value = line.partition("=")
            words = key.split() or [""]  # "include FILE" has no equals sign
            yield _Line(number, section, words[0].lower(), value.strip())


def _check(text: str) -> None:
    jobs = 0
    for line in _lines(text):
        if not line.section:
            raise InputError(f"line {line.number}: {line.key!r} is in no [section]: no job file")
        jobs += not line.key and line.section != "global"
        _check_line(line)
    if not jobs:
        raise InputError("there is no job in it, [NAME]")


def _check_line(line: _Line) -> None:
    where = f"line {line.number}: [{line.section}] {line.key}"
    if line.key in _REFUSED:
        raise InputError(f"{where} {_REFUSED[line.key]}")
    if line.key.startswith("write_") and line.key.endswith("log"):
        raise InputError(f"{where} writes a file, and the guest has its disk")
    if line.key == "filename" and line.value not in DISKS:
        raise InputError(
            f"{where} {line.value!r} is not the guest's disk: leave it out, or {' or '.join(DISKS)}"
        )
    if line.key == "ioengine" and line.value not in _ENGINES:
        raise unknown(where, line.value, _ENGINES)


def _parse(path: Path) -> None:
    """Have fio itself parse it, where there is one."""
    program = shutil.which("fio")
    if program is None:
        return
    try:
        done: Any = subprocess.run(
            [program, "--parse-only", str(path.absolute())],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"fio takes more than {_PATIENCE:.0f} s to parse {path}") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise InputError(f"fio does not parse {path}: {said[:300] or 'it does not say why'}")
