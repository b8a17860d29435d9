"""Finding, checking and constructing plugins: the one place that knows stevedore and pluggy.

A plugin is registered under an entry-point group of its distribution, in this distribution as in
any other. ``load`` gives one instance of a kind and name, ``available`` lists what is installed
without ever failing for a broken plugin, ``Registry`` gives plugins with the user's options to the
engine, ``Hooks`` calls the hooks of ``vmferry.api.hooks``, and ``temporary`` lets a test add a
plugin without installing a distribution.
"""

from vmferry.plugins.candidates import names, temporary
from vmferry.plugins.hooks import DISABLE_EXTERNAL, Hooks
from vmferry.plugins.kinds import HOOK, HOOK_GROUP, KINDS, Kind
from vmferry.plugins.loading import PluginInfo, available, describe, load
from vmferry.plugins.options import OptionInfo
from vmferry.plugins.registry import ANY_PLUGIN, OptionTable, Registry

__all__ = [
    "ANY_PLUGIN",
    "DISABLE_EXTERNAL",
    "HOOK",
    "HOOK_GROUP",
    "KINDS",
    "Hooks",
    "Kind",
    "OptionInfo",
    "OptionTable",
    "PluginInfo",
    "Registry",
    "available",
    "describe",
    "load",
    "names",
    "temporary",
]
