"""Block traces: what another program asked of a disk and when, as requests for a guest's tape.

Two formats are read, told apart by their first line:

- fio's iolog, versions 2 and 3 (``fio --write_iolog``; *Trace file format* in fio(1)): version 3
  has a time with each request, in microseconds; version 2 has ``wait`` lines, in microseconds too.
- the text of ``blkparse`` (blkparse(1)), of which the requests as they were queued count
  (action ``Q``), with times in seconds and places in sectors of 512 bytes.

All files or devices of a trace are one disk to the guest, in the order they appear: the first is
the guest's first disk, and so on, and round again if it has fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vmferry.errors import InputError
from vmferry_hypervisors.process.layout import ENTRY_SIZE
from vmferry_hypervisors.process.workload import Kind

__all__ = ["ENTRY", "Requests", "read_trace"]

ENTRY = np.dtype(
    {
        "names": ["at", "offset", "length", "kind", "disk"],
        "formats": ["<u8", "<u8", "<u4", "u1", "u1"],
        "itemsize": ENTRY_SIZE,
    }
)
"""One request: microseconds since the trace began, bytes, bytes, ``Kind``, number of the disk."""

Requests = npt.NDArray[np.void]
_Row = tuple[int, int, int, int, int]

_MOST = 1 << 22
_LONGEST = 1 << 22
_SECTOR = 512
_FIO = {
    "read": Kind.READ,
    "write": Kind.WRITE,
    "trim": Kind.TRIM,
    "sync": Kind.FLUSH,
    "datasync": Kind.FLUSH,
}
_FILES = {"add", "open", "close"}


def read_trace(path: Path) -> Requests:
    """The requests of a trace, in the order of the file; one that is longer than 4 MiB is cut.

    Raises:
        InputError: it cannot be read, is of no format known, holds no write or more than
            4 194 304 requests; names the line.

    """
    try:
        with path.open(encoding="utf-8", errors="strict") as file:
            rows = _limited(path, _rows(path, file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"trace {path}: {error}") from None
    requests = np.array(rows, dtype=ENTRY)
    if not (requests["kind"] == Kind.WRITE).any():
        raise InputError(f"trace {path} holds no write")
    requests["at"] -= requests["at"].min()
    return requests


def _limited(path: Path, rows: Iterator[_Row]) -> list[_Row]:
    kept = []
    for row in rows:
        kept.append(row)
        if len(kept) > _MOST:
            raise InputError(f"trace {path} has more than {_MOST} requests; cut it")
    return kept


def _rows(path: Path, lines: Iterable[str]) -> Iterator[_Row]:
    numbered = enumerate((line.split() for line in lines), 1)
    first = next(numbered, (0, []))[1]
    disks: dict[str, int] = {}
    if first[:2] + first[3:] == ["fio", "version", "iolog"] and first[2] in ("2", "3"):
        parse, clock = (_fio2 if first[2] == "2" else _fio3), _Clock()
    elif len(first) >= 7 and "," in first[0]:
        parse, clock = _blkparse, _Clock()
        numbered = enumerate([first, *(words for _, words in numbered)], 1)
    else:
        raise InputError(
            f"trace {path}: the first line is neither 'fio version 2 iolog', "
            f"'fio version 3 iolog' nor one of blkparse"
        )
    for number, words in numbered:
        try:
            row = parse(words, clock, disks)
        except (ValueError, IndexError, KeyError, OverflowError):
            raise InputError(f"trace {path}, line {number}: {' '.join(words)!r}") from None
        if row is not None:
            yield row


class _Clock:
    """Where a trace without times of its own has come to, in microseconds."""

    at = 0


def _row(at: int, kind: Kind, offset: int, length: int, disk: int) -> _Row | None:
    if kind != Kind.FLUSH and not length:
        return None
    if not (0 <= at < 1 << 63 and 0 <= offset < 1 << 63 and length >= 0):
        raise ValueError
    return at, offset, min(length, _LONGEST), kind, disk % 256


def _fio2(words: list[str], clock: _Clock, disks: dict[str, int]) -> _Row | None:
    if not words or (len(words) == 2 and words[1] in _FILES):
        return None
    name, action, offset, length = words
    if action == "wait":
        clock.at += int(offset)
        return None
    disk = disks.setdefault(name, len(disks))
    return _row(clock.at, _FIO[action], int(offset), int(length), disk)


def _fio3(words: list[str], _: _Clock, disks: dict[str, int]) -> _Row | None:
    if not words or (len(words) == 3 and words[2] in _FILES):
        return None
    at, name, action, offset, length = words
    disk = disks.setdefault(name, len(disks))
    return _row(int(at), _FIO[action], int(offset), int(length), disk)


def _blkparse(words: list[str], _: _Clock, disks: dict[str, int]) -> _Row | None:
    """``8,0 3 1 0.000000000 697 Q W 223490 + 8 [kjournald]``; summaries and messages are none."""
    if len(words) < 7 or "," not in words[0] or words[5] != "Q":
        return None
    what, at = words[6], round(float(words[3]) * 1e6)
    disk = disks.setdefault(words[0], len(disks))
    if len(words) < 10 or words[8] != "+":
        return _row(at, Kind.FLUSH, 0, 0, disk) if what.startswith("F") else None
    offset, length = int(words[7]) * _SECTOR, int(words[9]) * _SECTOR
    if "D" in what:
        return _row(at, Kind.TRIM, offset, length, disk)
    if "W" in what or "R" in what:
        return _row(at, Kind.WRITE if "W" in what else Kind.READ, offset, length, disk)
    return None
