"""``migrate export``: a disk that a hypervisor can use while its writes are tracked."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vmferry.cli.parameters import PluginName

if TYPE_CHECKING:
    from vmferry.api.volume import VolumeDriver
    from vmferry.export.daemon import ExportPaths

__all__ = ["export"]

_SOCKET = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Serve a disk over NBD.")
@click.argument("path")
@click.option("--name", default="disk0", show_default=True, help="Name of the NBD export.")
@click.option("--socket", required=True, type=_SOCKET, help="Unix socket to serve NBD on.")
@click.option("--control", required=True, type=_SOCKET, help="Unix socket for the tracker.")
@click.option(
    "--volume",
    default="raw",
    show_default=True,
    type=PluginName("volume"),
    help="Volume plugin that opens PATH.",
)
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@click.option("--json", "as_json", is_flag=True, help="Say that it is ready as a line of JSON.")
def export(
    path: str, name: str, socket: Path, control: Path, volume: str, read_only: bool, as_json: bool
) -> None:
    """Serve the disk at PATH over NBD, so that its writes can be tracked.

    Runs until SIGTERM or SIGINT; then it answers the requests under way and flushes. The tracker
    plugin "export" wants the two facts that the ready line shows: control and export.
    """
    from vmferry.export.daemon import ExportPaths
    from vmferry.plugins import load

    driver = cast("VolumeDriver[Any]", load("volume", volume))
    paths = ExportPaths(socket=socket.absolute(), control=control.absolute())
    line = _ready_line(path, name, paths, as_json=as_json)
    asyncio.run(_serve(driver, path, name, paths, line, read_only=read_only))


def _ready_line(path: str, name: str, paths: ExportPaths, *, as_json: bool) -> str:
    facts = {
        "path": path,
        "export": name,
        "socket": str(paths.socket),
        "control": str(paths.control),
    }
    if as_json:
        return json.dumps({"event": "ready", **facts})
    return "ready " + " ".join(f"{key}={value}" for key, value in facts.items())


async def _serve(
    driver: VolumeDriver[Any],
    path: str,
    name: str,
    paths: ExportPaths,
    line: str,
    *,
    read_only: bool,
) -> None:
    from vmferry.api.volume import Access
    from vmferry.export.daemon import serve_disks

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await driver.open(path, Access.READ if read_only else Access.WRITE) as disk:
        await serve_disks(
            {name: disk}, paths, stop=stop, ready=lambda: click.echo(line), read_only=read_only
        )
