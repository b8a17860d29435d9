"""Files of text that a user names: read whole, and no larger than such a file is."""

from __future__ import annotations

from pathlib import Path

from vmferry.errors import InputError

__all__ = ["read_text"]


def read_text(path: Path, most: int) -> str:
    """The text of a file of at most ``most`` bytes.

    Raises:
        InputError: it cannot be read, is larger, or is not UTF-8; names the file.

    """
    try:
        if path.stat().st_size > most:
            raise InputError(f"{path} is larger than {most} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
