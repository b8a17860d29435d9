"""Where the running kernel keeps its fields: a reader of its type information, BTF.

The format is described in the kernel's ``Documentation/bpf/btf.rst``. Offsets differ between
kernels, so programs are made with those of the kernel at hand.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vmferry.errors import TrackerError

__all__ = ["KERNEL_TYPES", "Btf", "BtfError", "Tracepoint"]

KERNEL_TYPES = Path("/sys/kernel/btf/vmlinux")
"""The kernel's own; there if it was built with ``CONFIG_DEBUG_INFO_BTF``."""

_MAGIC = 0xEB9F
_PTR, _STRUCT, _UNION, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _PROTO, _TYPE_TAG = (
    2, 4, 5, 8, 9, 10, 11, 13, 18,
)  # fmt: skip
_QUALIFIERS = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_FIXED = {1: 1, 3: 3, 14: 1, 17: 1}
"""Words after the three that every type has, by kind."""
_EACH = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
"""Words for each member, value or parameter, by kind."""
_LAST_KIND = 19


class BtfError(TrackerError):
    """The type information is missing, damaged or without what was looked for."""


class Tracepoint(NamedTuple):
    """A tracepoint's type and parameters.

    Attributes:
        type_id: of the typedef, as ``attach_btf_id`` wants it.
        parameters: the name of the struct each points to, or ``""``, in order.

    """

    type_id: int
    parameters: tuple[str, ...]


class Btf:
    """Type information in the form in which the kernel shows it.

    Raises:
        BtfError: it is damaged.

    """

    def __init__(self, data: bytes) -> None:
        try:
            magic, _, _, header, types, types_size, strings, strings_size = struct.unpack_from(
                "<HBBIIIII", data
            )
            if magic != _MAGIC:
                raise BtfError(f"type information begins with {magic:#x}, not {_MAGIC:#x}")
            self._strings = data[header + strings : header + strings + strings_size]
            self._words = np.frombuffer(data, "<u4", types_size // 4, header + types)
            self._places = _places(self._words)
        except (struct.error, ValueError, IndexError) as error:
            raise BtfError(f"the type information is damaged: {error}") from error

    @classmethod
    def of_kernel(cls, path: Path = KERNEL_TYPES) -> Btf:
        """The running kernel's, read once per process; takes some tens of milliseconds.

        Raises:
            BtfError: the kernel was built without it, or it is damaged.

        """
        return _read(path)

    def tracepoint(self, name: str) -> Tracepoint:
        """The tracepoint of that name.

        Raises:
            BtfError: the kernel has none.

        """
        type_id = self._find(f"btf_trace_{name}", {_TYPEDEF}, "tracepoint", name)
        proto = self._strip(self._target(self._strip(self._target(type_id))))
        if self._kind(proto) != _PROTO:
            raise BtfError(f"the tracepoint {name} is no function")
        kinds = [kind for _, kind, _ in self._members(proto, 2)]
        return Tracepoint(type_id, tuple(self._points_to(kind) for kind in kinds[1:]))

    def walk(self, struct_name: str, path: str) -> tuple[int, ...]:
        """Offsets in bytes on the way to a field, one for each load.

        Args:
            struct_name: where to begin.
            path: as in C, e.g. ``bi_bdev->bd_disk->major`` or ``bi_iter.bi_size``. Members of
                unnamed structs and unions are found as in C.

        Raises:
            BtfError: there is no such struct or field.

        """
        at = self._find(struct_name, {_STRUCT}, "struct", struct_name)
        offsets = []
        for hop in path.split("->"):
            offset = 0
            for name in hop.split("."):
                step, kind = self._field(at, name, f"{struct_name}: {path}")
                offset, at = offset + step, self._strip(kind)
            offsets.append(offset)
            if self._kind(at) == _PTR:
                at = self._strip(self._target(at))
        return tuple(offsets)

    def _field(self, at: int, name: str, wanted: str) -> tuple[int, int]:
        found = self._search(at, self._string(name))
        if found is None:
            raise BtfError(f"this kernel has no field {wanted} (no {name!r})")
        return found

    def _search(self, at: int, string: int) -> tuple[int, int] | None:
        if self._kind(at) not in {_STRUCT, _UNION}:
            return None
        for name, kind, bits in self._members(at, 3):
            offset = (bits & 0xFFFFFF) // 8
            if name == string:
                return offset, kind
            inner = None if name else self._search(self._strip(kind), string)
            if inner is not None:
                return offset + inner[0], inner[1]
        return None

    def _find(self, name: str, kinds: set[int], what: str, shown: str) -> int:
        string = self._string(name)
        names = self._words[self._places]
        for index in np.flatnonzero(names == string) if string else ():
            if self._kind(int(index) + 1) in kinds:
                return int(index) + 1
        raise BtfError(f"this kernel has no {what} {shown}")

    def _string(self, name: str) -> int:
        """Offset of a name, of which the kernel keeps one only; -1 if there is none."""
        at = self._strings.find(b"\0" + name.encode() + b"\0")
        return at + 1 if at >= 0 else -1

    def _name(self, at: int) -> str:
        begin = int(self._words[self._places[at - 1]])
        return self._strings[begin : self._strings.find(b"\0", begin)].decode(errors="replace")

    def _kind(self, at: int) -> int:
        return self._info(at) >> 24 & 31

    def _info(self, at: int) -> int:
        if not 0 < at <= len(self._places):
            return 0
        return int(self._words[self._places[at - 1] + 1])

    def _target(self, at: int) -> int:
        return int(self._words[self._places[at - 1] + 2]) if 0 < at <= len(self._places) else 0

    def _strip(self, at: int) -> int:
        """The type behind typedefs and qualifiers."""
        for _ in range(64):
            if self._kind(at) not in _QUALIFIERS:
                return at
            at = self._target(at)
        raise BtfError("the type information goes round in circles")

    def _points_to(self, at: int) -> str:
        at = self._strip(at)
        target = self._strip(self._target(at)) if self._kind(at) == _PTR else 0
        return self._name(target) if self._kind(target) == _STRUCT else ""

    def _members(self, at: int, words: int) -> list[tuple[int, ...]]:
        begin, count = int(self._places[at - 1]) + 3, self._info(at) & 0xFFFF
        rows = self._words[begin : begin + words * count].reshape(count, words).tolist()
        return [(row[0], row[1], row[2] if words > 2 else 0) for row in rows]


@functools.cache
def _read(path: Path) -> Btf:
    try:
        return Btf(path.read_bytes())
    except OSError as error:
        raise BtfError(f"the kernel's type information cannot be read: {error}") from error


def _places(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Where each type begins: they are of different lengths, so one must walk."""
    infos = words.tolist()
    places: list[int] = []
    at, stop = 0, len(infos)
    while at < stop:
        info = infos[at + 1]
        kind = info >> 24 & 31
        if not 0 < kind <= _LAST_KIND:
            raise BtfError(f"type {len(places) + 1} is of the unknown kind {kind}")
        places.append(at)
        at += 3 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
    return np.array(places, np.int64)
