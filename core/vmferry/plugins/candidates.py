"""Entry points of plugins, with the distribution each comes from, and how one is loaded.

``importlib.metadata`` tells the distributions, which stevedore's own list leaves out and its cache
in the user's cache folder may be behind on; stevedore loads. Looking through all distributions
takes milliseconds, and plugins are asked for several times in a migration: what was found holds
until a folder of ``sys.path`` changes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from stevedore.driver import DriverManager

from vmferry.errors import PluginError, PluginNotFound
from vmferry.plugins.kinds import group_of

if TYPE_CHECKING:
    _DriverManager = DriverManager[Any]
else:
    _DriverManager = DriverManager

__all__ = ["Candidate", "candidates", "duplicates", "find", "load_object", "names", "temporary"]

_TEMPORARY = "(temporary)"
_temporary: dict[tuple[str, str], object] = {}


@dataclass(frozen=True)
class _Given:
    """Stands in for an entry point whose object is at hand."""

    name: str
    target: object

    def load(self) -> object:
        return self.target


@dataclass(frozen=True)
class Candidate:
    """One entry point, not loaded yet.

    Attributes:
        kind: the kind whose group it is registered under.
        name: the name it is registered by.
        distribution: name of the distribution it comes from.
        version: that distribution's version, or ``""``.
        entry_point: what is loaded.

    """

    kind: str
    name: str
    distribution: str
    version: str
    entry_point: EntryPoint | _Given

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()

    def __str__(self) -> str:
        return f"{self.kind} plugin {self.name!r} of {self.origin}"


def candidates(kind: str) -> list[Candidate]:
    """All entry points of a kind, sorted by name; a temporary one hides the installed one."""
    points = _installed(tuple(_places())).select(group=group_of(kind))
    found = [_from_entry_point(kind, point) for point in points]
    given = [
        Candidate(kind, name, _TEMPORARY, "", _Given(name, target))
        for (of, name), target in _temporary.items()
        if of == kind
    ]
    hidden = {candidate.name for candidate in given}
    found = [candidate for candidate in found if candidate.name not in hidden]
    return sorted(found + given, key=lambda candidate: (candidate.name, candidate.origin))


def _places() -> Iterator[tuple[str, int]]:
    """The folders that distributions are looked for in, and when each has changed last."""
    for place in sys.path:
        changed = 0
        with contextlib.suppress(OSError):
            changed = os.stat(place or ".").st_mtime_ns
        yield place, changed


@functools.lru_cache(maxsize=2)
def _installed(_: tuple[tuple[str, int], ...]) -> Any:
    """All entry points there are, of whatever group."""
    return entry_points()


def _from_entry_point(kind: str, point: EntryPoint) -> Candidate:
    name, version = ("(unknown)", "") if point.dist is None else _identity(point.dist)
    return Candidate(kind, point.name, name, version, point)


@functools.lru_cache(maxsize=64)
def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version. A damaged distribution has none; it must not hide the others."""
    try:
        return distribution.name or "(unknown)", distribution.version or ""
    except Exception:
        return "(unknown)", ""


def names(kind: str) -> list[str]:
    """Names under which plugins of a kind are registered; loads none of them."""
    return sorted({candidate.name for candidate in candidates(kind)})


def find(kind: str, name: str) -> Candidate:
    """The one entry point of that kind and name.

    Raises:
        PluginNotFound: there is none; lists those there are.
        PluginError: several distributions register that name.

    """
    there = candidates(kind)
    matches = [candidate for candidate in there if candidate.name == name]
    if not matches:
        raise PluginNotFound(kind, name, {candidate.name for candidate in there})
    if len(matches) > 1:
        raise PluginError(duplicates(matches))
    return matches[0]


def duplicates(matches: list[Candidate]) -> str:
    """Say that several distributions register one name, and what to do about it."""
    origins = " and ".join(candidate.origin for candidate in matches)
    first = matches[0]
    return f"{first.kind} plugin {first.name!r} is registered by {origins}; uninstall all but one"


class _OneDriver(_DriverManager):
    """stevedore's driver manager over one known entry point instead of its cached list."""

    def __init__(self, candidate: Candidate) -> None:
        self._point: Any = candidate.entry_point
        super().__init__(
            group_of(candidate.kind), candidate.name, on_load_failure_callback=self._fail
        )

    def list_entry_points(self) -> list[EntryPoint]:
        return [self._point]

    @staticmethod
    def _fail(manager: object, point: EntryPoint, error: BaseException) -> None:
        raise error


def load_object(candidate: Candidate) -> object:
    """Import what an entry point names; whatever goes wrong meanwhile is a ``PluginError``."""
    try:
        # .driver would be the class or an instance, by its truth value
        return _OneDriver(candidate).extensions[0].plugin
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"{candidate} cannot be loaded: {reason}") from error


@contextlib.contextmanager
def temporary(kind: str, name: str, target: object) -> Iterator[None]:
    """Register a plugin class for the time of a ``with`` block, for tests.

    It is found, checked and constructed just as an installed one, and hides an installed one of the
    same kind and name::

        with temporary("tracker", "mine", MyTracker):
            tracker = load("tracker", "mine", {"window": "2s"})

    It holds for the whole process. Blocks may be nested.
    """
    group_of(kind)
    key, missing = (kind, name), object()
    before = _temporary.get(key, missing)
    _temporary[key] = target
    try:
        yield
    finally:
        if before is missing:
            del _temporary[key]
        else:
            _temporary[key] = before
