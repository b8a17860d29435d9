"""What a long command shows while it works: live bars, plain lines or JSON.

A display is a hook plugin (observers only)::

    with choose_display(json=as_json, quiet=quiet) as display:
        hooks.register(display, "display")
        ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

import click

from vmferry.cli.display.base import Display, QuietDisplay
from vmferry.cli.display.json_lines import JsonDisplay
from vmferry.cli.display.plain import PlainDisplay
from vmferry.cli.display.rich_live import RichDisplay

__all__ = [
    "Display",
    "JsonDisplay",
    "PlainDisplay",
    "QuietDisplay",
    "RichDisplay",
    "choose_display",
    "display_options",
]


def choose_display(
    json: bool = False, stream: TextIO | None = None, *, quiet: bool = False
) -> Display:
    """The display that suits ``stream`` (default: standard output) and the user's wish.

    JSON if asked for, else nothing if ``quiet``, else live bars on a terminal that can move its
    cursor, else plain lines.
    """
    stream = sys.stdout if stream is None else stream
    if json:
        return JsonDisplay(stream)
    if quiet:
        return QuietDisplay()
    from rich.console import Console

    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return RichDisplay(console)
    return PlainDisplay(stream)


def display_options(command: Any) -> Any:
    """Add ``--json`` and ``--quiet`` to a command, passed as ``json`` and ``quiet``."""
    options: list[Callable[[Any], Any]] = [
        click.option("--json", is_flag=True, help="Print events as JSON, one object per line."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
