"""Where log lines go: to stderr as wanted by ``-v``, and in full to a file.

Plugins log under names of their own, so this is about the root logger. Libraries are heard from
warnings on only.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

from vmferry.errors import InputError

__all__ = ["configure"]

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_LIBRARIES = {"asyncio", "stevedore", "qemu", "concurrent"}
_handlers: list[logging.Handler] = []


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at that moment: a live display puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure(verbosity: int, log_file: Path | None = None) -> None:
    """Send warnings (0), also infos (1) or all (2) to stderr, and all to ``log_file``.

    Replaces what an earlier call set up.

    Raises:
        InputError: the file cannot be written.

    """
    root = logging.getLogger()
    for handler in _handlers:
        root.removeHandler(handler)
        handler.close()
    stderr = _CurrentStderr()
    stderr.setLevel(_LEVELS[min(verbosity, len(_LEVELS) - 1)])
    stderr.setFormatter(logging.Formatter("migrate: %(levelname)s: %(message)s"))
    _handlers[:] = [stderr]
    if log_file is not None:
        _handlers.append(_file_handler(log_file))
    for handler in _handlers:
        handler.addFilter(_worth_saying)
        root.addHandler(handler)
    root.setLevel(logging.DEBUG if log_file is not None else stderr.level)


def _worth_saying(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _LIBRARIES


def _file_handler(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the log file {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler
