"""Listening on a unix socket: permissions without a window, stale files replaced, live ones not.

Taking and giving up a path happens under a lock on its folder, so that of two processes that find
a stale file only one replaces it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vmferry.errors import InputError

__all__ = ["UnixListener", "accept_all"]

_log = logging.getLogger(__name__)

_MAX_PATH: Final = 107
"""Bytes of a path in ``sockaddr_un`` (unix(7)), without its final zero."""
_BACKLOG: Final = 64
_PAUSE: Final = 0.1
"""Seconds until the next try when no client can be accepted: no more descriptors, say."""


class UnixListener:
    """A bound, listening, non-blocking unix socket that knows its file.

    Attributes:
        path: where it listens.
        sock: the listening socket.

    """

    def __init__(self, path: str | os.PathLike[str], mode: int = 0o600) -> None:
        """Listen on ``path`` with permissions ``mode``.

        Raises:
            InputError: the path is too long, its folder is missing, something that is no socket is
                there, or somebody listens on it.

        """
        self.path = Path(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._closed = False
        try:
            self._identity = self._bind(mode)
        except BaseException:
            self.sock.close()
            raise

    def _bind(self, mode: int) -> tuple[int, int]:
        if len(os.fsencode(self.path)) > _MAX_PATH:
            raise InputError(f"socket path {str(self.path)!r} is longer than {_MAX_PATH} bytes")
        self.sock.setblocking(False)
        os.fchmod(self.sock.fileno(), mode)  # what bind(2) gives the file, but for the umask
        with _folder_locked(self.path):
            _clear(self.path)
            self.sock.bind(str(self.path))
            self.path.chmod(mode)
            self.sock.listen(_BACKLOG)
            return _identity(self.path)

    def close(self) -> None:
        """Stop listening and remove the file, unless it is somebody else's by now. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.sock.close()
        try:
            with _folder_locked(self.path):
                if _identity(self.path) == self._identity:
                    self.path.unlink()
        except (InputError, FileNotFoundError):
            return


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


@contextmanager
def _folder_locked(path: Path) -> Iterator[None]:
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"cannot use the folder of socket {str(path)!r}: {error}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _clear(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise InputError(f"{str(path)!r} exists and is not a socket; choose another path")
    if _is_live(path):
        raise InputError(f"another process listens on {str(path)!r}; end it or choose another path")
    path.unlink()


def _is_live(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is EAGAIN: somebody is there
        return probe.connect_ex(str(path)) not in {errno.ECONNREFUSED, errno.ENOENT}


async def accept_all(listener: socket.socket, welcome: Callable[[socket.socket], None]) -> None:
    """Hand each client's socket, non-blocking, to ``welcome``, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock, _ = await loop.sock_accept(listener)
        except OSError as error:
            _log.warning("cannot accept a client: %s", error)
            await asyncio.sleep(_PAUSE)
        else:
            sock.setblocking(False)
            welcome(sock)
