"""What an NBD client is told when a request failed."""

from __future__ import annotations

import errno
from typing import Final

from vmferry.export.nbd.protocol import Error

__all__ = ["RequestRefused", "error_of"]

_BY_ERRNO: Final[dict[int | None, Error]] = {
    errno.EPERM: Error.EPERM,
    errno.EACCES: Error.EPERM,
    errno.EROFS: Error.EPERM,
    errno.ENOMEM: Error.ENOMEM,
    errno.EINVAL: Error.EINVAL,
    errno.ENOSPC: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
    errno.EFBIG: Error.ENOSPC,
    errno.EOVERFLOW: Error.EOVERFLOW,
    errno.ENOTSUP: Error.ENOTSUP,
    errno.ESHUTDOWN: Error.ESHUTDOWN,
}


class RequestRefused(Exception):
    """A request that is answered with an error without being tried.

    Attributes:
        error: the number the client gets.

    """

    def __init__(self, error: Error, message: str) -> None:
        self.error = error
        super().__init__(message)


def error_of(failure: BaseException) -> Error:
    """The protocol's error number for ``failure``; ``EIO`` for whatever it has no number for.

    ``ValueError`` is how a disk refuses a range, ``MemoryError`` is ``ENOMEM``.
    """
    if isinstance(failure, RequestRefused):
        return failure.error
    if isinstance(failure, OSError):
        return _BY_ERRNO.get(failure.errno, Error.EIO)
    if isinstance(failure, ValueError):
        return Error.EINVAL
    return Error.ENOMEM if isinstance(failure, MemoryError) else Error.EIO
