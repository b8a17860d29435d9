"""The kinds of plugin: entry-point group and base class of each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vmferry.api import Hypervisor, Plugin, Tracker, Transport, Trial, VolumeDriver
from vmferry.errors import InputError

__all__ = ["HOOK", "HOOK_GROUP", "KINDS", "Kind", "group_of", "kind_of"]


class Kind(NamedTuple):
    """One kind of plugin.

    Attributes:
        group: entry-point group that plugins of this kind are registered under.
        base: class that every one of them extends.

    """

    group: str
    base: type[Plugin[Any]]


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "volume": Kind("vmferry.volumes", VolumeDriver),
        "tracker": Kind("vmferry.trackers", Tracker),
        "transport": Kind("vmferry.transports", Transport),
        "hypervisor": Kind("vmferry.hypervisors", Hypervisor),
        "trial": Kind("vmferry.trials", Trial),
    }
)
"""Kinds that are selected by name, in the order in which they are listed."""

HOOK = "hook"
"""Kind of a hook plugin, which has no base class and is not selected: all installed ones run."""

HOOK_GROUP = "vmferry.hooks"
"""Entry-point group of hook plugins."""


def group_of(kind: str) -> str:
    """Entry-point group of a kind, hooks included; raises ``InputError`` naming the kinds."""
    return HOOK_GROUP if kind == HOOK else kind_of(kind).group


def kind_of(name: str) -> Kind:
    """Kind of that name; raises ``InputError`` naming those there are."""
    if name not in KINDS:
        raise InputError(f"no plugin kind named {name!r}; there are: {', '.join(KINDS)}")
    return KINDS[name]
