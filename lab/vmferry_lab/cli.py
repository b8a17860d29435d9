"""The laboratory's commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import click

from vmferry.errors import VmferryError
from vmferry_lab.lab import Lab, default_folder
from vmferry_lab.recipe import FLAVOURS
from vmferry_lab.ssh import Ssh

__all__ = ["main"]


class _Commands(click.Group):
    """Commands whose expected errors are one line, not a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except VmferryError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_folder,
    show_default="VMFERRY_LAB of the environment, else .lab",
    help="The laboratory's folder; nothing is written outside it.",
)
@click.pass_context
def main(context: click.Context, state_dir: Path) -> None:
    """Two real Xen hosts under QEMU, built from Debian packages; and guests for QEMU itself."""
    context.obj = Lab(state_dir, say=click.echo)


@main.command()
@click.option(
    "--with",
    "flavours",
    multiple=True,
    type=click.Choice(sorted(FLAVOURS)),
    help="Further packages.",
)
@click.option("--storage", is_flag=True, help="A third host, without Xen, for shared disks.")
@click.option("--mirror", help="The Debian mirror that packages come from.")
@click.pass_obj
def up(lab: Lab, flavours: tuple[str, ...], storage: bool, mirror: str | None) -> None:
    """Build the image if it is new, boot the hosts, install vmferry."""
    lab.up(flavours=flavours, storage=storage, mirror=mirror)


@main.command()
@click.option("--mirror", help="The Debian mirror that packages come from.")
@click.pass_obj
def guest(lab: Lab, mirror: str | None) -> None:
    """Build what a QEMU guest that runs fio boots from; no host is needed for it."""
    for path in lab.build_qemu_guest(mirror=mirror):
        click.echo(path)


@main.command()
@click.pass_obj
def install(lab: Lab) -> None:
    """Install vmferry from the checkout into running hosts, again if need be."""
    lab.install()


@main.command()
@click.option("--purge", is_flag=True, help="Remove the cached image, wheels, keys and logs too.")
@click.pass_obj
def down(lab: Lab, purge: bool) -> None:
    """End the hosts and remove their disks."""
    lab.down(purge=purge)


@main.command()
@click.pass_obj
def status(lab: Lab) -> None:
    """Show the hosts, the way into each, and their logs."""
    for host in lab.hosts():
        running = "running" if host.machine.running() else "not running"
        click.echo(f"{host.name}  {running}  ssh port {host.ssh.port}  console {host.console}")


_LINE = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""Settings of commands whose last words belong to a host's shell."""


@main.command(context_settings=_LINE)
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def ssh(lab: Lab, host: str, command: tuple[str, ...]) -> None:
    """Open a shell on HOST, or run COMMAND there as `run` does."""
    _become(lab.host(host).ssh, " ".join(command), terminal=not command)


@main.command(context_settings=_LINE)
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(lab: Lab, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST with this command's input, output and exit code.

    Its words are joined to a line for the host's shell, as ssh does.
    """
    _become(lab.host(host).ssh, " ".join(command))


def _become(way: Ssh, command: str, *, terminal: bool = False) -> NoReturn:
    """Let ssh take this process's place."""
    argv = way.argv(command, terminal=terminal)
    os.chdir(way.folder)
    os.execvp(argv[0], argv)  # noqa: S606  # there is no shell to be misled


@main.command()
@click.argument("source")
@click.argument("target")
@click.pass_obj
def copy(lab: Lab, source: str, target: str) -> None:
    """Copy a file, or a folder's content, to or from a host: one side is HOST:PATH."""
    if ":" in target:
        name, _, there = target.partition(":")
        lab.host(name).put(Path(source), there)
    else:
        name, _, there = source.partition(":")
        lab.host(name).get(there, Path(target))
