"""``migrate completion``: the script that teaches a shell to complete."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from vmferry.cli.app import PROGRAM, migrate

__all__ = ["completion"]


@click.command(short_help="Print the script for a shell's completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete commands, options and plugins.

    \b
    bash: migrate completion bash > ~/.local/share/bash-completion/completions/migrate
    zsh:  migrate completion zsh  > "${fpath[1]}/_migrate"
    fish: migrate completion fish > ~/.config/fish/completions/migrate.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(migrate, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
