"""Whether what an entry point names is a plugin of its kind: nothing else checks the interface."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from vmferry.api import API_VERSION, Options, Plugin
from vmferry.errors import PluginError
from vmferry.plugins.candidates import Candidate, load_object
from vmferry.plugins.kinds import kind_of
from vmferry.plugins.options import option_infos

__all__ = ["accepted_versions", "load_class"]


def accepted_versions() -> list[int]:
    """Contract versions a plugin may be written for: this one and the one before."""
    return [version for version in (API_VERSION - 1, API_VERSION) if version > 0]


def load_class(candidate: Candidate) -> type[Plugin[Any]]:
    """Import a plugin's class and check it against the contract of its kind.

    Raises:
        PluginError: it cannot be imported or breaks the contract; names plugin, distribution,
            version and what is wrong.

    """
    loaded = load_object(candidate)
    base = kind_of(candidate.kind).base
    if not isinstance(loaded, type) or not issubclass(loaded, base):
        raise PluginError(f"{candidate} is no subclass of vmferry.api.{base.__name__}: {loaded!r}")
    faults = list(_faults(loaded, base, candidate.name))
    if faults:
        raise PluginError(f"{candidate} breaks its contract: {'; '.join(faults)}")
    return loaded


def _faults(cls: type[Plugin[Any]], base: type[Plugin[Any]], name: str) -> Iterator[str]:
    yield from _identity_faults(cls, name)
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if inspect.isabstract(cls):
        yield f"does not implement {', '.join(missing)}"
    wanted = type(base.capabilities)
    if not isinstance(cls.capabilities, wanted):
        yield f"capabilities must be of type {wanted.__name__}, not {cls.capabilities!r}"
    yield from _option_faults(cls.options_type)


def _identity_faults(cls: type[Plugin[Any]], name: str) -> Iterator[str]:
    version = getattr(cls, "api_version", None)
    if type(version) is not int:
        yield f"api_version must be an integer, not {version!r}"
    elif version not in accepted_versions():
        accepted = " or ".join(map(str, accepted_versions()))
        yield f"api_version is {version}, this vmferry accepts {accepted}"
    if getattr(cls, "name", None) != name:
        yield f"its name is {getattr(cls, 'name', None)!r}, its entry point's is {name!r}"
    if not isinstance(cls.summary, str):
        yield f"summary must be a string, not {cls.summary!r}"


def _option_faults(options_type: object) -> Iterator[str]:
    if not isinstance(options_type, type) or not issubclass(options_type, Options):
        yield f"options_type must be a subclass of vmferry.api.Options, not {options_type!r}"
        return
    try:
        infos = option_infos(options_type)
    except Exception as error:
        yield f"its options cannot be understood: {type(error).__name__}: {error}"
        return
    without = [info.name for info in infos if info.required]
    if without:
        yield f"these options have no default: {', '.join(without)}"
