"""Plugins by name with the user's settings, as the engine asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from vmferry.api import Hypervisor, Plugin, Tracker, Transport, Trial, VolumeDriver
from vmferry.errors import InputError
from vmferry.plugins.kinds import kind_of
from vmferry.plugins.loading import check_options, load

__all__ = ["ANY_PLUGIN", "OptionTable", "Registry"]

ANY_PLUGIN = "*"
"""In place of a plugin's name: options for whichever plugin of that kind is used."""

OptionTable = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Options by kind, plugin and option: ``{"tracker": {"export": {"window": "2s"}}}``."""


class Registry:
    """Gives plugins by name; satisfies ``vmferry.engine.context.Registry``.

    Every call constructs an instance of its own. Options under a plugin's name have precedence over
    those under ``ANY_PLUGIN``.
    """

    def __init__(self, options: OptionTable | None = None) -> None:
        self._options = options or {}
        for kind in self._options:
            kind_of(kind)

    def check(self) -> None:
        """Check the options of every plugin that is named, before anything is begun.

        Raises:
            PluginNotFound, PluginError, OptionError: as ``load``.

        """
        for kind, plugins in self._options.items():
            for name in plugins:
                if name != ANY_PLUGIN:
                    check_options(kind, name, self.options(kind, name))

    def volume(self, name: str) -> VolumeDriver[Any]:
        """A volume driver. Raises ``PluginNotFound``, ``PluginError`` or ``OptionError``."""
        return cast("VolumeDriver[Any]", self._load("volume", name))

    def tracker(self, name: str) -> Tracker[Any]:
        """A tracker for one disk."""
        return cast("Tracker[Any]", self._load("tracker", name))

    def transport(self, name: str) -> Transport[Any]:
        """A transport by the scheme of its addresses."""
        return cast("Transport[Any]", self._load("transport", name))

    def hypervisor(self, name: str) -> Hypervisor[Any]:
        """A hypervisor for one job."""
        return cast("Hypervisor[Any]", self._load("hypervisor", name))

    def trial(self, name: str, **more: Any) -> Trial[Any]:
        """A trial guest by the name of its hypervisor; ``more`` has precedence over settings."""
        return cast("Trial[Any]", load("trial", name, {**self.options("trial", name), **more}))

    def options(self, kind: str, name: str) -> Mapping[str, Any]:
        """The user's settings for that plugin."""
        if name == ANY_PLUGIN:
            raise InputError(f"{ANY_PLUGIN!r} is no plugin's name")
        kind_of(kind)
        plugins = self._options.get(kind, {})
        return {**plugins.get(ANY_PLUGIN, {}), **plugins.get(name, {})}

    def _load(self, kind: str, name: str) -> Plugin[Any]:
        return load(kind, name, self.options(kind, name))
