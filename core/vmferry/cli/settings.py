"""Plugins' options from the command line and from a TOML file.

The file has one table for each plugin, ``[KIND.NAME]``, or ``[KIND."*"]`` for whichever plugin of
that kind is used::

    [tracker.export]
    block_size = "64KiB"

    [transport."*"]
    timeout = "20s"

A table of a command's own name has options of that command, as they are written on its command
line; so far of ``serve``::

    [serve]
    pool = "/srv/guests"

Without ``--config`` and ``$VMFERRY_CONFIG`` the first of these is read that exists:
``~/.config/vmferry/config.toml`` and ``/etc/vmferry/config.toml``.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from vmferry.errors import InputError
from vmferry.plugins import ANY_PLUGIN, KINDS, OptionTable

__all__ = ["merge", "parse_option", "plugin_options", "read_config"]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
Table = dict[str, dict[str, dict[str, Any]]]
_SETTING = re.compile(r"(?:([A-Za-z0-9_-]+)\.)?([A-Za-z0-9_-]+)=(.*)", re.DOTALL)
_MOST_CONFIG = 1 << 20
_COMMANDS = ("serve",)


def plugin_options(*kinds: str) -> Callable[[CommandT], CommandT]:
    """Add ``--config FILE`` and ``--KIND-opt [NAME.]KEY=VALUE`` for each kind to a command.

    The command receives ``plugin_settings``, an ``OptionTable`` for ``vmferry.plugins.Registry``.
    The command line has precedence over the file.
    """

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        def wrapper(*args: Any, config: Path | None, **params: Any) -> Any:
            given = {kind: params.pop(f"{kind}_opt") for kind in kinds}
            file = read_config(config) if config else {}
            return command(*args, plugin_settings=merge(file, given), **params)

        decorated: Any = wrapper
        for kind in reversed(kinds):
            decorated = _option_for(kind)(decorated)
        return _config_option(decorated)  # type: ignore[no-any-return]

    return decorate


def _option_for(kind: str) -> Callable[[Any], Any]:
    return click.option(
        f"--{kind}-opt",
        multiple=True,
        metavar="[NAME.]KEY=VALUE",
        help=f"Set an option of the {kind} plugin; see 'migrate plugins show'. May be repeated.",
    )


def _usual_file() -> Path | None:
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    usual = (home / "vmferry/config.toml", Path("/etc/vmferry/config.toml"))
    return next((path for path in usual if path.exists()), None)


def _with_defaults(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Take the command's own table of the file for defaults of its options."""
    name = context.info_name
    if path is not None and name in _COMMANDS:
        table = {_plain(key): value for key, value in _content(path).get(name, {}).items()}
        known = {param.name for param in context.command.params}
        if unknown := sorted(set(table) - known):
            raise InputError(f"{path}: [{name}] has no option {unknown[0]!r}")
        context.default_map = table
    return path


_config_option: Callable[[Any], Any] = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="VMFERRY_CONFIG",
    default=_usual_file,
    is_eager=True,
    callback=_with_defaults,
    help="Options of plugins from a TOML file with tables such as [tracker.export].",
)


def parse_option(kind: str, text: str) -> tuple[str, str, str]:
    """Plugin (or ``ANY_PLUGIN``), option and value of ``[NAME.]KEY=VALUE``.

    Raises:
        InputError: names the text when it is not of that form.

    """
    match = _SETTING.fullmatch(text)
    if match is None:
        raise InputError(f"--{kind}-opt {text!r}: write KEY=VALUE or NAME.KEY=VALUE")
    return match[1] or ANY_PLUGIN, _plain(match[2]), match[3]


def read_config(path: Path) -> Table:
    """Read a TOML file of plugins' options.

    Raises:
        InputError: it cannot be read, is no TOML, or has something else in it; names file and key.

    """
    content = _content(path)
    return {
        kind: _plugins_of(path, kind, plugins)
        for kind, plugins in content.items()
        if kind not in _COMMANDS
    }


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_CONFIG:
            raise InputError(f"{path} is larger than {_MOST_CONFIG} bytes")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    for name in _COMMANDS:
        if not isinstance(content.get(name, {}), dict):
            raise InputError(f"{path}: {name!r} must be a table, [{name}]")
    return content


def _plugins_of(path: Path, kind: str, plugins: object) -> dict[str, dict[str, Any]]:
    if kind not in KINDS:
        raise InputError(f"{path}: [{kind}] is no plugin kind; there are: {', '.join(KINDS)}")
    if not isinstance(plugins, dict):
        raise InputError(f"{path}: {kind!r} must be a table of plugins, such as [{kind}.NAME]")
    for name, options in plugins.items():
        if not isinstance(options, dict):
            raise InputError(f"{path}: {name!r} in [{kind}] must be a table, [{kind}.{name}]")
    return {
        name: {_plain(key): value for key, value in options.items()}
        for name, options in plugins.items()
    }


def merge(config: OptionTable, given: Mapping[str, Iterable[str]]) -> Table:
    """Lay what was ``given`` on the command line, by kind, over a file's options."""
    table: Table = {
        kind: {name: dict(options) for name, options in plugins.items()}
        for kind, plugins in config.items()
    }
    for kind, texts in given.items():
        plugins = table.setdefault(kind, {})
        for text in texts:
            _lay(plugins, *parse_option(kind, text))
    return table


def _lay(plugins: dict[str, dict[str, Any]], name: str, key: str, value: str) -> None:
    if name == ANY_PLUGIN:
        # the plugin's own table in the file would have precedence otherwise
        for options in plugins.values():
            options.pop(key, None)
    plugins.setdefault(name, {})[key] = value


def _plain(key: str) -> str:
    return key.replace("-", "_")
