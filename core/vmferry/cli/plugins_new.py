"""``migrate plugins new``: a project with a plugin that works, to be made one's own."""

from __future__ import annotations

from pathlib import Path

import click

from vmferry.cli.scaffold.render import SAMPLES, render
from vmferry.cli.scaffold.write import write

__all__ = ["new_plugin"]


@click.command("new", short_help="Write a project with a plugin of your own.")
@click.argument("kind", type=click.Choice(list(SAMPLES)))
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where to write it; nothing may be there. Default: vmferry-NAME.",
)
def new_plugin(kind: str, name: str, folder: Path | None) -> None:
    """Write a project with a plugin of KIND that is called NAME.

    The plugin works and keeps its contract; its tests pass as they stand. Nothing is overwritten.

    \b
    Example:
      migrate plugins new tracker tape-robot
      cd vmferry-tape-robot && pytest
    """
    project = render(kind, name)
    where = Path(project.distribution) if folder is None else folder
    write(project, where)
    for path in sorted(project.files):
        click.echo(f"{where}/{path}")
    click.echo(f"\nnext: cd {where} && pip install -e '.[test]' && pytest")
