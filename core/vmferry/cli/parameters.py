"""Types of command-line parameters: sizes, rates, durations and names of plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from vmferry.errors import InputError
from vmferry.units import parse_duration, parse_rate, parse_size

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

__all__ = ["DURATION", "RATE", "SIZE", "PluginName"]


class _Unit(_ParamType):
    """Text with a unit; numbers are taken as they are."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name, self._parse = name, parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Bytes, bytes per second or seconds; a usage error names what was wrong."""
        if not isinstance(value, str):
            return float(value) if isinstance(value, float) else int(value)
        try:
            return self._parse(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


SIZE = _Unit("size", parse_size)
"""Bytes: ``64KiB``, ``1.5GiB``."""
RATE = _Unit("rate", parse_rate)
"""Bytes per second: ``100MiB/s``, ``1Gbit/s``; 0 or ``unlimited`` is no limit."""
DURATION = _Unit("duration", parse_duration)
"""Seconds: ``500ms``, ``30s``, ``2m``."""


class PluginName(_ParamType):
    """Name of a plugin of one kind, or of any; completed by the shell, not checked here."""

    name = "name"

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names of the registered plugins; none is loaded."""
        from vmferry.plugins import HOOK, KINDS, names

        kinds = [self.kind or ctx.params.get("kind")]
        wanted = [kind for kind in kinds if kind] or [*KINDS, HOOK]
        found = {name for kind in wanted for name in names(kind)}
        return [CompletionItem(name) for name in sorted(found) if name.startswith(incomplete)]
