"""A laboratory of two real Xen hosts under QEMU, built from Debian packages alone."""

from __future__ import annotations

from vmferry_lab.host import Host
from vmferry_lab.lab import Lab

__all__ = ["Host", "Lab"]
