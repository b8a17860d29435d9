"""``migrate serve``: receive guests from other hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vmferry.api import Address, Listener
from vmferry.cli.agent_control import commanded
from vmferry.cli.assembly import Assembly, assemble, private_folder, state_option
from vmferry.cli.display import Display, choose_display, display_options
from vmferry.cli.exits import ExitCode
from vmferry.cli.interrupt import run_interruptible
from vmferry.cli.logins import Logins, until_idle
from vmferry.cli.parameters import DURATION, PluginName
from vmferry.cli.settings import plugin_options
from vmferry.engine.agent import Agent
from vmferry.engine.pool import Pool
from vmferry.engine.services import DestinationServices
from vmferry.errors import InputError
from vmferry.export.exporter import NbdExporter
from vmferry.wire.link import LIMITS
from vmferry.wire.tasks import until

__all__ = ["serve"]

DEFAULT = "tcp://127.0.0.1:7420"


@click.command(short_help="Receive guests from other hosts.")
@click.argument("address", metavar="[URL]", default=DEFAULT)
@click.option(
    "--pool",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    show_default="guests in the state folder",
    help="Folder for the disks of arriving guests.",
)
@click.option(
    "--place",
    multiple=True,
    metavar="[GUEST/]DISK=PATH",
    help="Put that disk on an existing device or at that path. May be repeated.",
)
@click.option(
    "--volume",
    type=PluginName("volume"),
    default="raw",
    show_default=True,
    help="Plugin that makes the disks.",
)
@click.option("--once", is_flag=True, help="End when one guest has arrived whole.")
@click.option(
    "--idle",
    type=DURATION,
    help="End when nobody was connected, and no guest needed this agent, for that long.",
)
@click.option(
    "--patience",
    type=DURATION,
    default=30.0,
    show_default="30s",
    help="Silence after which a source counts as gone.",
)
@plugin_options("hypervisor", "transport", "volume")
@state_option
@display_options
def serve(
    address: str,
    pool: Path | None,
    place: tuple[str, ...],
    volume: str,
    once: bool,
    idle: float | None,
    patience: float,
    plugin_settings: Any,
    state_dir: Path,
    json: bool,
    quiet: bool,
) -> ExitCode:
    """Receive guests at URL, by default tcp://127.0.0.1:7420.

    Beyond the loopback interface TLS is required, unless --transport-opt insecure=true is given.
    Port 0 takes a free one, which is shown.

    \b
    Examples:
      migrate serve
      migrate serve --pool /var/lib/guests
      migrate serve tcp://0.0.0.0:7420 --pool /var/lib/guests \\
          --transport-opt tls_cert=b.pem --transport-opt tls_key=b.key --transport-opt tls_ca=ca.pem
    """
    if pool is None:
        pool = private_folder(private_folder(state_dir) / "guests")
    where = Pool(str(pool.resolve()), volume, _places(place))
    ends = _Ends(once=once, idle=idle)
    with choose_display(json, quiet=quiet) as display:
        work = _serve(
            Address.parse(address), where, ends, patience, plugin_settings, state_dir, display
        )
        return asyncio.run(work)


@dataclass(frozen=True)
class _Ends:
    """When an agent ends by itself: after one guest, or after so many seconds without work."""

    once: bool
    idle: float | None

    async def serve(self, agent: Agent, listener: Listener) -> None:
        serving = agent.serve(listener, once=self.once)
        if self.idle is None:
            return await serving
        logins = Logins(listener.address.path) if listener.address.scheme == "ssh" else None
        return await until(until_idle(agent, self.idle, logins), serving)


def _places(texts: Iterable[str]) -> dict[str, str]:
    places = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name and path):
            raise InputError(f"--place {text!r}: write DISK=PATH or GUEST/DISK=PATH")
        places[name] = path
    return places


async def _serve(
    address: Address,
    pool: Pool,
    ends: _Ends,
    patience: float,
    settings: Any,
    state: Path,
    display: Display,
) -> ExitCode:
    async with (
        assemble(settings, display, state, "destination") as assembly,
        _exporter(assembly) as exporter,
    ):
        services = DestinationServices(
            registry=assembly.registry,
            hooks=assembly.hooks,
            workers=assembly.workers,
            journal=assembly.journal,
            beside=assembly.beside,
            exporter=exporter,
        )
        assembly.registry.volume(pool.volume)
        transport = assembly.registry.transport(address.scheme)
        listener = await transport.listen(address, limits=LIMITS)
        agent = Agent(services, pool, patience=patience)
        try:
            await agent.recover()
            async with commanded(agent, assembly.state):
                assembly.hooks.event("", "listening", address=str(listener.address))
                await run_interruptible(ends.serve(agent, listener), lambda: _hold(agent))
        except asyncio.CancelledError:
            return ExitCode.AFTER_SWITCH if agent.busy else ExitCode.OK
        finally:
            await listener.close()
    return ExitCode.OK


@asynccontextmanager
async def _exporter(assembly: Assembly) -> Any:
    exporter = NbdExporter(private_folder(assembly.state / "exports"))
    try:
        yield exporter
    finally:
        await exporter.close()


def _hold(agent: Agent) -> str:
    if not agent.busy:
        return ""
    return "a guest that has arrived here still needs this agent"
