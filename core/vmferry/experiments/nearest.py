"""Refusing a word that is not known, and naming the nearest that are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from vmferry.errors import InputError

__all__ = ["known", "unknown"]

_SHOWN = 24


def unknown(what: str, word: object, there: Iterable[str]) -> InputError:
    """The error for a ``word`` that is not among those ``there`` are."""
    names = sorted(set(there))
    near = difflib.get_close_matches(str(word), names, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return InputError(f"{what} {word!r} is unknown{hint}; there are: {listed or 'none'}")


def known(what: str, words: Iterable[str], there: Iterable[str]) -> None:
    """Raise ``InputError`` for the first of ``words`` that is not ``there``."""
    names = list(there)
    for word in words:
        if word not in names:
            raise unknown(what, word, names)
