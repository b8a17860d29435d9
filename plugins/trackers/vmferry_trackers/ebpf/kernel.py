"""The ``bpf(2)`` system call, as far as a tracker needs it. All functions block.

Layouts are those of ``union bpf_attr`` in the kernel's ``include/uapi/linux/bpf.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

from vmferry.errors import TrackerError

__all__ = [
    "BpfError",
    "attach",
    "create_array",
    "create_array_of_maps",
    "create_hash",
    "load_program",
    "set_map",
    "supported",
]

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361}
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _RAW_TRACEPOINT = 0, 2, 5, 17
_HASH, _ARRAY, _ARRAY_OF_MAPS = 1, 2, 12
_MMAPABLE = 1 << 10
_TRACING, _TRACE_RAW_TP = 26, 23  # BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP
_LICENSE = b"Dual BSD/GPL\0"
_LOG_BYTES = 1 << 20
_LOG_SHOWN = 600

_libc = ctypes.CDLL(None, use_errno=True)


class BpfError(TrackerError):
    """The kernel refused.

    Attributes:
        number: its error number.

    """

    def __init__(self, what: str, number: int, log: str = "") -> None:
        said = f": {log[-_LOG_SHOWN:]}" if log else ""
        super().__init__(f"{what}: {os.strerror(number)}{said}")
        self.number = number


def supported() -> bool:
    """Whether this machine's system call number and byte order are known."""
    return sys.byteorder == "little" and platform.machine() in _NUMBERS


def _bpf(command: int, attributes: bytes, what: str) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None or not supported():
        raise BpfError(f"{what} on {platform.machine()}", errno.ENOSYS)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _libc.syscall(number, command, buffer, len(attributes))
    if result < 0:
        raise BpfError(what, ctypes.get_errno())
    return int(result)


def _create(kind: int, key: int, value: int, entries: int, flags: int = 0, inner: int = 0) -> int:
    attributes = struct.pack("<IIIIII", kind, key, value, entries, flags, inner)
    return _bpf(_MAP_CREATE, attributes, f"making a map of {entries} entries of {value} bytes")


def create_array(words: int) -> int:
    """Descriptor of an array of 8-byte words, all zero, that can be mapped into memory.

    Its memory is the kernel's, and freed when nothing refers to it any longer.
    """
    return _create(_ARRAY, 4, 8, words, _MMAPABLE)


def create_array_of_maps(like: int) -> int:
    """Descriptor of an array with one place, for a map made as the one behind ``like``."""
    return _create(_ARRAY_OF_MAPS, 4, 4, 1, inner=like)


def create_hash(value: int, entries: int) -> int:
    """Descriptor of a table from 8 bytes to ``value`` bytes, for up to ``entries`` keys."""
    return _create(_HASH, 8, value, entries)


def set_map(array: int, inner: int) -> None:
    """Put a map into the only place of an array of maps.

    On return no program uses the map that was there before: the kernel waits for those under way
    (``maybe_wait_bpf_programs`` in ``kernel/bpf/syscall.c``).
    """
    key, value = ctypes.c_uint32(0), ctypes.c_uint32(inner)
    addresses = ctypes.addressof(key), ctypes.addressof(value)
    _bpf(_MAP_UPDATE, struct.pack("<IxxxxQQQ", array, *addresses, 0), "changing maps")


def load_program(name: str, code: bytes, type_id: int) -> int:
    """Descriptor of a program for the tracepoint with that type, verified by the kernel.

    It gets typed pointers, so the kernel lets it follow them without a helper.

    Raises:
        BpfError: with the end of what the verifier said.

    """
    try:
        return _load(name, code, type_id, None)
    except BpfError as error:
        if error.number not in {errno.EINVAL, errno.EACCES, errno.E2BIG}:
            raise
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        return _load(name, code, type_id, log)
    except BpfError as error:
        said = log.value.decode(errors="replace").strip()
        raise BpfError(f"loading the program {name}", error.number, said) from None


def _load(name: str, code: bytes, type_id: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
    text, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.c_char_p(_LICENSE)
    attributes = struct.pack(
        "<IIQQIIQII16sIIIIQIIQII",
        *(_TRACING, len(code) // 8, ctypes.addressof(text)),
        ctypes.cast(license_, ctypes.c_void_p).value or 0,
        *((0, 0, 0) if log is None else (1, len(log), ctypes.addressof(log))),
        *(0, 0, name.encode()[:15], 0, _TRACE_RAW_TP),
        *(0, 0, 0, 0, 0, 0, 0, type_id),
    )
    return _bpf(_PROG_LOAD, attributes, f"loading the program {name}")


def attach(program: int) -> int:
    """Let a program run at its tracepoint; closing the descriptor returned ends that.

    The kernel closes it when the process ends, however it ends.
    """
    return _bpf(_RAW_TRACEPOINT, struct.pack("<QIxxxx", 0, program), "attaching a program")
