"""Process guests by hand: ``python -m vmferry_hypervisors.process``.

For demonstrations and for experiments that need a guest without a trial around it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import click
import msgspec

from vmferry.api.guest import Disk
from vmferry.errors import VmferryError
from vmferry.units import parse_size
from vmferry_hypervisors.process import nbd
from vmferry_hypervisors.process.checker import GuestRecord, check_guest
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.folder import AttachedDisk, Definition, GuestFolder, list_guests
from vmferry_hypervisors.process.launch import launch
from vmferry_hypervisors.process.options import ProcessOptions
from vmferry_hypervisors.process.workload import Workload

__all__ = ["main"]

_TIMEOUT = 30.0
_STATE = click.option(
    "--state-dir",
    default=ProcessOptions().state_dir,
    show_default=True,
    help="Folder that plays the host.",
)


class _Group(click.Group):
    """Commands whose own errors are a line of text, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what we raise on purpose becomes its message."""
        try:
            return super().invoke(ctx)
        except (VmferryError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group)
def main() -> None:
    """Start, watch, check and stop guests that are processes. They are no virtual machines."""


def _state(path: str) -> Path:
    return ProcessOptions(state_dir=path).state


def _attached(index: int, url: str) -> AttachedDisk:
    """The disk at ``url``; its size is the file's or the export's."""
    if url.startswith("file:"):
        path = Path(url.removeprefix("file:")).absolute()
        disk = Disk(name=f"disk{index}", size=os.stat(path).st_size, location=str(path))
        return AttachedDisk(disk, f"file:{path}")
    connection, export = nbd.connect(url, _TIMEOUT)
    connection.close()
    return AttachedDisk(Disk(name=f"disk{index}", size=export.size), url)


def _workload(settings: tuple[str, ...]) -> Workload:
    pairs = dict(setting.partition("=")[::2] for setting in settings)
    try:
        return msgspec.convert(pairs, Workload, strict=False)
    except msgspec.ValidationError as error:
        raise click.BadParameter(str(error), param_hint="--set") from error


@main.command()
@click.argument("name")
@_STATE
@click.option("--memory", default="64MiB", show_default=True, help="Memory of the guest.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    required=True,
    metavar="URL",
    help="file:PATH or nbd+unix:///NAME?socket=PATH; zero where the guest has not written.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="What it does.")
def start(
    name: str, state_dir: str, memory: str, disks: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    """Start the guest NAME; it runs on when this command has ended."""
    definition = Definition(
        name=name,
        memory=parse_size(memory),
        disks=tuple(_attached(index, url) for index, url in enumerate(disks)),
        workload=_workload(settings),
    )
    folder = launch(_state(state_dir), definition)
    click.echo(f"{name} runs as process {folder.pid()}")


@main.command()
@_STATE
def status(state_dir: str) -> None:
    """Show the guests of a host."""
    for folder in list_guests(_state(state_dir)):
        pid = folder.pid()
        state = "ended" if pid is None else "arriving" if folder.incoming else f"process {pid}"
        click.echo(f"{folder.name}: {state}")
        if not folder.incoming:
            registers = vars(folder.registers())
            click.echo("  " + ", ".join(f"{key} {value}" for key, value in registers.items()))


@main.command()
@click.argument("name")
@_STATE
def resume(name: str, state_dir: str) -> None:
    """Let a guest that was left suspended, or complete but not activated, run."""
    folder = GuestFolder(_state(state_dir), name)
    folder.signal(signal.SIGCONT)
    folder.welcome()
    asyncio.run(call(folder.path, Command("resume"), _TIMEOUT))


@main.command()
@click.argument("name")
@_STATE
@click.option(
    "--console",
    "consoles",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="console.log of another host it has been on.",
)
def verify(name: str, state_dir: str, consoles: tuple[Path, ...]) -> None:
    """End a guest and hold disks and memory against its records. Exits with 6 if they differ."""
    folder = GuestFolder(_state(state_dir), name)
    if folder.pid() is not None:
        asyncio.run(call(folder.path, Command("quiesce"), _TIMEOUT))
        folder.kill()
    disks = {each.disk.name: Path(each.disk.location) for each in folder.definition().disks}
    verdict = check_guest(GuestRecord.read(folder.path), [folder.console, *consoles], disks)
    click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode())
    if not verdict.good:
        raise SystemExit(6)


@main.command()
@click.argument("name")
@_STATE
def stop(name: str, state_dir: str) -> None:
    """End a guest and remove all it left but its disks and its console."""
    folder = GuestFolder(_state(state_dir), name)
    folder.kill()
    folder.remove()


if __name__ == "__main__":
    main(prog_name="python -m vmferry_hypervisors.process")
