"""Plugins by kind and name: load one, list them all, describe one's options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from vmferry.api import Capabilities, Plugin
from vmferry.errors import InputError, PluginError
from vmferry.plugins.candidates import Candidate, candidates, duplicates, find
from vmferry.plugins.checks import load_class
from vmferry.plugins.hooks import probe
from vmferry.plugins.kinds import HOOK, KINDS
from vmferry.plugins.options import OptionInfo, option_infos, validate

__all__ = ["PluginInfo", "available", "check_options", "describe", "load"]


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One installed plugin, working or not.

    Attributes:
        kind: e.g. ``tracker``.
        name: as users write it.
        distribution: name of the distribution it comes from.
        version: that distribution's version.
        summary: one line.
        api_version: the contract version it was written for; 0 if that could not be found out.
        capabilities: grade of each capability, ``none``, ``emulated`` or ``native``; of a hook
            plugin ``observer`` or ``policy`` for each hook it implements.
        error: why it cannot be used, or ``""``.

    """

    kind: str
    name: str
    distribution: str
    version: str
    summary: str = ""
    api_version: int = 0
    capabilities: dict[str, str] = {}
    error: str = ""


def load(kind: str, name: str, options: Mapping[str, Any] | None = None) -> Plugin[Any]:
    """Find, check and construct a plugin; each call gives another instance.

    Args:
        kind: one of ``KINDS``.
        name: the plugin's name.
        options: by name; text is converted as for the command line.

    Raises:
        PluginNotFound: no distribution registers it; lists those there are.
        PluginError: it cannot be loaded, breaks its contract, is registered twice or failed to
            construct; names the distribution and its version.
        OptionError: an option is unknown, has the wrong type or is out of range.
        InputError: the plugin itself refused its options.

    """
    candidate = find(kind, name)
    cls = load_class(candidate)
    chosen = validate(f"{kind} plugin {name!r}", cls.options_type, options or {})
    try:
        return cls(chosen)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"{candidate} cannot be constructed: {reason}") from error


def check_options(kind: str, name: str, options: Mapping[str, Any]) -> None:
    """Raise what ``load`` would raise for these options; constructs nothing."""
    cls = load_class(find(kind, name))
    validate(f"{kind} plugin {name!r}", cls.options_type, options)


def describe(kind: str, name: str) -> list[OptionInfo]:
    """Describe the options of a plugin, in the order in which it states them.

    Raises:
        PluginNotFound, PluginError: as ``load``.

    """
    if kind == HOOK:
        find(kind, name)
        return []
    return option_infos(load_class(find(kind, name)).options_type)


def available(kind: str | None = None) -> list[PluginInfo]:
    """Describe everything that is installed, of one kind or of all, hooks included.

    A plugin that is broken in any way is listed with its ``error`` and does not hide another.
    """
    kinds = [*KINDS, HOOK] if kind is None else [kind]
    return [info for one in kinds for info in _available(one)]


def _available(kind: str) -> Iterator[PluginInfo]:
    there = candidates(kind)
    for candidate in there:
        same = [other for other in there if other.name == candidate.name]
        if len(same) > 1:
            yield _info(candidate, error=duplicates(same))
        else:
            yield _look(candidate)


def _look(candidate: Candidate) -> PluginInfo:
    try:
        if candidate.kind == HOOK:
            summary, hooks = probe(candidate)
            return _info(candidate, summary=summary, capabilities=hooks)
        return _look_at_class(candidate, load_class(candidate))
    except PluginError as error:
        return _info(candidate, error=str(error))
    except Exception as error:
        return _info(candidate, error=f"{candidate} is broken: {type(error).__name__}: {error}")


def _look_at_class(candidate: Candidate, cls: type[Plugin[Any]]) -> PluginInfo:
    return _info(
        candidate,
        summary=cls.summary,
        api_version=cls.api_version,
        capabilities=_grades(cls.capabilities),
    )


def _info(candidate: Candidate, **facts: Any) -> PluginInfo:
    return PluginInfo(
        kind=candidate.kind,
        name=candidate.name,
        distribution=candidate.distribution,
        version=candidate.version,
        **facts,
    )


def _grades(capabilities: Capabilities) -> dict[str, str]:
    grades = msgspec.structs.asdict(capabilities)
    return {name: getattr(grade, "name", str(grade)).lower() for name, grade in grades.items()}
