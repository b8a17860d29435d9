"""What xl(1) does not offer: a domain's state at little cost, and resuming a suspended domain.

``xl list`` costs a process, and Xen 4.17 has no ``xl resume``. The library is called by ctypes; its
names and the beginning of ``libxl_dominfo`` (``tools/libs/light/libxl_types.idl``) have been the
same since Xen 4.8, and what comes back is held against what was asked. Resuming is done by a
process of its own (``python libxl.py resume DOMID``), since the library may fork and wait.
"""

from __future__ import annotations

import ctypes
import glob
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["SUSPENDED", "DomainState", "LibraryMissing", "domain_state", "resume_domain"]

SUSPENDED = 2
"""Reason of a shutdown: ``LIBXL_SHUTDOWN_REASON_SUSPEND``."""

_NOT_FOUND = -21  # ERROR_DOMAIN_NOTFOUND
_FOLDERS = (
    "/usr/lib/*-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/lib/xen-*/lib",
)
_SPACE = 4096
"""Bytes given for a ``libxl_dominfo``, whose length differs by version (about 150)."""


class LibraryMissing(OSError):
    """The library that belongs to the running Xen was not found, or is another than it seems."""


class DomainState(NamedTuple):
    """What a domain does.

    Attributes:
        shutdown: it has stopped, for ``reason``.
        reason: why, if so; ``SUSPENDED`` while it is migrated.
        dying: it is being destroyed.
        paused: it was paused by the toolstack.

    """

    shutdown: bool
    reason: int
    dying: bool
    paused: bool

    @property
    def suspended(self) -> bool:
        """Whether it stands still and can be resumed or migrated."""
        return self.shutdown and self.reason == SUSPENDED


class _Head(ctypes.Structure):
    _fields_ = (
        ("uuid", ctypes.c_ubyte * 16),
        ("domid", ctypes.c_uint32),
        ("ssidref", ctypes.c_uint32),
        ("ssid_label", ctypes.c_char_p),
        ("running", ctypes.c_bool),
        ("blocked", ctypes.c_bool),
        ("paused", ctypes.c_bool),
        ("shutdown", ctypes.c_bool),
        ("dying", ctypes.c_bool),
        ("never_stop", ctypes.c_bool),
        ("shutdown_reason", ctypes.c_int),
    )


def _version() -> str:
    folder = Path("/sys/hypervisor/version")
    try:
        return ".".join((folder / part).read_text().strip() for part in ("major", "minor"))
    except OSError as error:
        raise LibraryMissing(f"this is no dom0 of Xen: {folder} cannot be read") from error


class _Library:
    """libxenlight of the running Xen, with a context; use it with ``with``."""

    def __init__(self) -> None:
        name = f"libxenlight.so.{_version()}"
        found = [path for folder in _FOLDERS for path in glob.glob(f"{folder}/{name}")]
        try:
            self._xl = ctypes.CDLL(found[0] if found else name)
            self._log = ctypes.CDLL("libxentoollog.so.1")
        except OSError as error:
            raise LibraryMissing(f"{name} cannot be loaded: {error}") from error
        self._log.xtl_createlogger_stdiostream.restype = ctypes.c_void_p
        self._log.xtl_logger_destroy.argtypes = [ctypes.c_void_p]
        stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
        critical = 8  # XTL_CRITICAL: what fails is told by the result
        self._logger = ctypes.c_void_p(self._log.xtl_createlogger_stdiostream(stderr, critical, 0))
        self.context = ctypes.c_void_p()
        if self._xl.libxl_ctx_alloc(ctypes.byref(self.context), 0, 0, self._logger):
            self._log.xtl_logger_destroy(self._logger)
            raise LibraryMissing(f"{name} cannot be used: is this dom0, and the user root?")

    def __enter__(self) -> ctypes.CDLL:
        return self._xl

    def __exit__(self, *exc: object) -> None:
        self._xl.libxl_ctx_free(self.context)
        self._log.xtl_logger_destroy(self._logger)


def domain_state(domid: int) -> DomainState | None:
    """What the domain does; ``None`` if there is none of that number.

    Raises:
        LibraryMissing: libxenlight cannot be used; ask ``xl list``.

    """
    library = _Library()
    with library as xl:
        space = ctypes.create_string_buffer(_SPACE)
        code = xl.libxl_domain_info(library.context, space, ctypes.c_uint32(domid))
        if code == _NOT_FOUND:
            return None
        head = _Head.from_buffer(space)
        if code or head.domid != domid:
            raise LibraryMissing(f"libxl_domain_info of domain {domid}: {code}, {head.domid}")
        state = DomainState(head.shutdown, head.shutdown_reason, head.dying, head.paused)
        xl.libxl_dominfo_dispose(space)
        return state


def resume_domain(domid: int) -> int:
    """Let a suspended domain go on where it stood; returns libxl's code, 0 if it does.

    The guest is told that its suspend was cancelled (``suspend_cancel``), so its devices stay.
    """
    library = _Library()
    with library as xl:
        return int(
            xl.libxl_domain_resume(library.context, ctypes.c_uint32(domid), ctypes.c_int(1), None)
        )


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "resume":
        sys.exit("usage: libxl.py resume DOMID")
    sys.exit(1 if resume_domain(int(sys.argv[2])) else 0)
