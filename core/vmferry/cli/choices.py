"""The options of ``run``, ``check`` and ``demo`` that become ``Settings`` and the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

from vmferry.cli.parameters import DURATION, RATE, SIZE, PluginName
from vmferry.engine.policy import DefaultPolicy, PolicyOptions
from vmferry.engine.settings import Settings
from vmferry.errors import InputError

__all__ = ["migration_options", "policy_of", "settings_of"]

_DEFAULT = Settings()
_POLICY = PolicyOptions()
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--bandwidth",
        type=RATE,
        default=_DEFAULT.bandwidth,
        show_default="unlimited",
        help="Limit over all lanes and memory, e.g. 100MiB/s; 'migrate set' changes it.",
    ),
    click.option(
        "--block-size",
        type=SIZE,
        default=_DEFAULT.block_size,
        show_default="64KiB",
        help="Bytes per bit of the dirty maps; a power of two from 512.",
    ),
    click.option(
        "--piece",
        type=SIZE,
        default=_DEFAULT.piece,
        show_default="4MiB",
        help="Most bytes per extent on the wire.",
    ),
    click.option(
        "--lanes", type=int, default=_DEFAULT.lanes, show_default=True, help="Bulk lanes."
    ),
    click.option(
        "--memory-channels",
        type=int,
        default=_DEFAULT.memory_channels,
        show_default=True,
        help="Further streams for memory, each on a lane of its own (QEMU's multifd).",
    ),
    click.option(
        "--compression",
        type=click.Choice(["auto", "none", "lz4", "zstd"]),
        default=_DEFAULT.compression,
        show_default=True,
        help="auto judges on samples whether it pays.",
    ),
    click.option(
        "--tracker",
        type=PluginName("tracker"),
        default=_DEFAULT.tracker,
        help="Tracker to use instead of the one that suits the guest's disk.",
    ),
    click.option(
        "--threshold",
        type=SIZE,
        default=_POLICY.threshold,
        show_default="16MiB",
        help="Switch when no more than this is dirty.",
    ),
    click.option(
        "--max-rounds",
        type=int,
        default=_POLICY.max_rounds,
        show_default=True,
        help="Most rounds of PUSH, the full copy included.",
    ),
    click.option(
        "--min-gain",
        type=float,
        default=_POLICY.min_gain,
        show_default=True,
        help="Share by which a round must shrink what is dirty for another to follow.",
    ),
    click.option(
        "--no-pull",
        is_flag=True,
        help="Switch only once little is dirty, and send the rest before the guest runs again.",
    ),
    click.option(
        "--pull-limit",
        type=SIZE,
        default=_DEFAULT.pull_limit,
        show_default="no limit",
        help="Most that may be left to pull at the switch; if more is dirty, it is sent first.",
    ),
    click.option(
        "--patience",
        type=DURATION,
        default=_DEFAULT.patience,
        show_default="30s",
        help="Silence after which the other host counts as gone.",
    ),
    click.option(
        "--stall-timeout",
        type=DURATION,
        default=_DEFAULT.stall_timeout,
        show_default="60s",
        help="Give up a connection on which nothing moves for that long; 0 waits for ever.",
    ),
    click.option(
        "--reconnect",
        type=DURATION,
        default=_DEFAULT.reconnect,
        show_default="1h",
        help="How long to go on trying to reach the destination in PUSH and in PULL; with 0, "
        "a connection that is lost in PUSH ends the migration.",
    ),
)


def migration_options(command: Any) -> Any:
    """Add them all; the command receives them as keyword arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_of(choices: dict[str, Any]) -> Settings:
    """The settings chosen; raises ``InputError`` naming an option that is out of range."""
    known = {key: value for key, value in choices.items() if key in Settings.__struct_fields__}
    if choices.get("no_pull"):
        known["pull_limit"] = 0
    for name in ("block_size", "piece"):
        size = known.get(name, _DEFAULT.block_size)
        if size & (size - 1):
            raise InputError(f"--{name.replace('_', '-')} {size} is not a power of two")
    settings: Settings = _converted(known, Settings)
    return settings


def policy_of(choices: dict[str, Any]) -> DefaultPolicy:
    """The convergence policy chosen."""
    known = {k: v for k, v in choices.items() if k in PolicyOptions.__struct_fields__}
    known["converge"] = bool(choices.get("no_pull"))
    options: PolicyOptions = _converted(known, PolicyOptions)
    return DefaultPolicy(options)


def _converted(values: dict[str, Any], kind: Any) -> Any:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        name = text.rpartition("`$.")[2].rstrip("`").replace("_", "-")
        raise InputError(f"--{name}: {text.partition(' - at')[0]}") from None
