"""An initrd: a "newc" cpio archive (Linux, Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import gzip
import stat

__all__ = ["Initrd"]


class Initrd:
    """Files by path, in the order they were added; the same files give the same bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def folder(self, path: str) -> None:
        """Add a folder; its parent must have been added."""
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file."""
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def packed(self) -> bytes:
        """The archive, compressed as every kernel can read it."""
        self._add("TRAILER!!!", 0, b"")
        return gzip.compress(b"".join(self._parts), compresslevel=6, mtime=0)

    def _add(self, path: str, mode: int, content: bytes) -> None:
        name = path.encode() + b"\0"
        number = len(self._parts) + 1
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts.append(_padded(header + name) + _padded(content))


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
