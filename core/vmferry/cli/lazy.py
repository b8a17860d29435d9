"""A group whose commands are imported when they are used, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import ClassVar, NamedTuple

import click
from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "LazyCommand", "LazyGroup"]


class LazyCommand(NamedTuple):
    """Where a command is, and its help in one line: the same as the command's own short help."""

    module: str
    attribute: str
    help: str


COMMANDS: Mapping[str, LazyCommand] = {
    "demo": LazyCommand(
        "vmferry.cli.demo", "demo", "Migrate a guest on this machine, and check it."
    ),
    "run": LazyCommand("vmferry.cli.run", "run", "Migrate a guest to another host."),
    "serve": LazyCommand("vmferry.cli.serve", "serve", "Receive guests from other hosts."),
    "stdio": LazyCommand(
        "vmferry.cli.stdio", "stdio", "Join standard input and output to the agent of logins."
    ),
    "check": LazyCommand("vmferry.cli.check", "check", "Tell whether a guest could migrate."),
    "status": LazyCommand("vmferry.cli.status", "status", "Show the migrations of this host."),
    "resume": LazyCommand(
        "vmferry.cli.resume", "resume", "Bring a broken-off migration to its end."
    ),
    "cancel": LazyCommand(
        "vmferry.cli.cancel", "cancel", "Give up a migration that has not been handed over."
    ),
    "resolve": LazyCommand(
        "vmferry.cli.resolve", "resolve", "Decide who has the guest of a broken-off migration."
    ),
    "cleanup": LazyCommand(
        "vmferry.cli.cleanup",
        "cleanup",
        "Remove what broken-off migrations have left on this host.",
    ),
    "set": LazyCommand("vmferry.cli.set", "set_", "Change a migration that is running."),
    "export": LazyCommand("vmferry.cli.export", "export", "Serve a disk over NBD."),
    "experiment": LazyCommand(
        "vmferry.cli.experiment", "experiment", "Run comparative experiments and report on them."
    ),
    "plugins": LazyCommand("vmferry.cli.plugins", "plugins", "Show the installed plugins."),
    "completion": LazyCommand(
        "vmferry.cli.completion", "completion", "Print the script for a shell's completion."
    ),
}
"""All commands in the order in which they are listed. One whose module is absent is left out."""


class LazyGroup(click.Group):
    """Knows its commands by a table and imports only the one that is used."""

    table: ClassVar[Mapping[str, LazyCommand]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands whose modules there are."""
        return [name for name, command in self.table.items() if find_spec(command.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; ``None`` if there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = self.table[cmd_name]
        loaded: click.Command = getattr(import_module(command.module), command.attribute)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        rows = [(name, self.table[name].help) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete command names without importing them."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=self.table[name].help) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]
