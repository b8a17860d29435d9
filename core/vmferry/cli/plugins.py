"""``migrate plugins``: what is installed, what it can do, and why something does not load."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vmferry.cli.parameters import PluginName
from vmferry.cli.plugins_new import new_plugin
from vmferry.errors import InputError, PluginNotFound
from vmferry.plugins import HOOK, KINDS, OptionInfo, PluginInfo, available, describe, names
from vmferry.units import format_duration, format_rate, format_size

__all__ = ["plugins"]

_WIDE = 160
_FORMATS = {"bytes": format_size, "bytes/s": format_rate, "seconds": format_duration}


def _selection(command: Any) -> Any:
    kinds = click.Choice([*KINDS, HOOK])
    command = click.option("--kind", type=kinds, help="Only plugins of this kind.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@click.group(invoke_without_command=True, short_help="Show the installed plugins.")
@_selection
@click.pass_context
def plugins(context: click.Context, kind: str | None, as_json: bool) -> None:
    """Show the installed plugins; without a command, list them."""
    if context.invoked_subcommand is None:
        _list(kind, as_json)


@plugins.command("list")
@_selection
def list_plugins(kind: str | None, as_json: bool) -> None:
    """List the plugins with what they can do, and those that cannot be used with the reason."""
    _list(kind, as_json)


@plugins.command("show")
@click.argument("name", type=PluginName())
@_selection
def show_plugin(name: str, kind: str | None, as_json: bool) -> None:
    """Show the options of the plugins named NAME: types, defaults, units."""
    infos = [info for info in available(kind) if info.name == name]
    if not infos:
        raise _not_found(kind, name)
    shown = [(info, [] if info.error else describe(info.kind, info.name)) for info in infos]
    if as_json:
        _print_json([{**msgspec.to_builtins(info), "options": rows} for info, rows in shown])
        return
    for info, rows in shown:
        _print_plugin(_console(), info, rows)


plugins.add_command(new_plugin)


def _not_found(kind: str | None, name: str) -> InputError:
    if kind:
        return PluginNotFound(kind, name, names(kind))
    known = sorted({known for one in (*KINDS, HOOK) for known in names(one)})
    return InputError(f"no plugin named {name!r}; there are: {', '.join(known)}")


def _list(kind: str | None, as_json: bool) -> None:
    infos = available(kind)
    if as_json:
        _print_json(infos)
    else:
        _print_table(_console(), infos)


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


def _print_table(console: Console, infos: list[PluginInfo]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("KIND", "NAME", "DISTRIBUTION", "CAPABILITIES", "SUMMARY"):
        table.add_column(column, overflow="fold")
    for info in infos:
        summary = "[red]cannot be used, see below[/]" if info.error else escape(info.summary)
        origin = escape(f"{info.distribution} {info.version}".strip())
        table.add_row(info.kind, escape(info.name), origin, _capabilities(info), summary)
    console.print(table)
    for info in infos:
        if info.error:
            console.print(f"\n[red]cannot be used:[/] {escape(info.error)}", soft_wrap=True)


def _capabilities(info: PluginInfo) -> str:
    """What it has, by grade, best first: ``precopy, pivot (native)``."""
    grades: dict[str, list[str]] = {}
    for name, grade in info.capabilities.items():
        if grade != "none":
            grades.setdefault(grade, []).append(name)
    return "; ".join(f"{', '.join(has)} ({grade})" for grade, has in sorted(grades.items())[::-1])


def _print_plugin(console: Console, info: PluginInfo, rows: list[OptionInfo]) -> None:
    origin = f"{info.distribution} {info.version}".strip()
    console.print(f"[bold]{info.kind} {escape(info.name)}[/]  {escape(info.summary)}")
    console.print(f"  from {escape(origin)}, contract version {info.api_version or 'unknown'}")
    if info.error:
        console.print(f"  [red]cannot be used:[/] {escape(info.error)}", soft_wrap=True)
        return
    for name, grade in info.capabilities.items():
        console.print(f"  {escape(name)}: {escape(grade)}")
    console.print(_option_table(rows) if rows else "  no options")


def _option_table(rows: list[OptionInfo]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("OPTION", "TYPE", "DEFAULT", "UNIT", "LIMITS", "DESCRIPTION"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (row.name, row.type, _default(row), row.unit, row.limits, row.description)
        table.add_row(*map(escape, cells))
    return table


def _default(row: OptionInfo) -> str:
    value = row.default
    if row.unit in _FORMATS and isinstance(value, (int, float)):
        return "unlimited" if row.unit == "bytes/s" and value == 0 else _FORMATS[row.unit](value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else ",".join(value) if isinstance(value, list) else str(value)
