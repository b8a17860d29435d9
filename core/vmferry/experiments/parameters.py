"""The axes of a matrix, and one cell of it: what is varied, and what one run is done with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from vmferry.errors import InputError
from vmferry.experiments.nearest import unknown
from vmferry.units import (
    MIB,
    SECTOR,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)

__all__ = ["AXES", "Axis", "Parameters", "cell_of", "parse_value", "show_value"]

_SECTORS = re.compile(r"\s*(\d+)\s*(?:sectors?|s)\s*")
_SMALLEST_BLOCK = 8 * SECTOR
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cell of a matrix.

    Attributes:
        method: how the guest is moved: ``vmferry`` or a baseline.
        hypervisor: what the guest runs on.
        tracker: tracker of its disk; ``auto`` is the one that suits.
        transport: scheme of the connection.
        volume: volume plugin at the destination; ``auto`` is the one that suits.
        block_size: bytes per bit of the dirty maps.
        compression: ``auto``, ``none``, ``lz4`` or ``zstd``.
        bandwidth: bytes per second that the link carries; 0: whatever it can.
        latency: seconds that the link adds each way.
        loss: share of packets that the link loses.
        limit: bytes per second that vmferry keeps to by itself; 0 is no limit.
        policy: name of a convergence policy.
        workload: name of what the guest does.
        disk_size: bytes of its disk.
        memory: bytes of its memory.

    """

    method: str = "vmferry"
    hypervisor: str = "process"
    tracker: str = "auto"
    transport: str = "tcp"
    volume: str = "auto"
    block_size: int = 64 * 1024
    compression: str = "auto"
    bandwidth: int = 0
    latency: float = 0.0
    loss: float = 0.0
    limit: int = 0
    policy: str = "default"
    workload: str = "idle"
    disk_size: int = 256 * MIB
    memory: int = 64 * MIB


class Axis(NamedTuple):
    """How values of an axis are read and shown.

    Attributes:
        parse: value from what is in the file; raises ``InputError``.
        show: value for people.
        help: what it means, in one line.

    """

    parse: Callable[[Any], Any]
    show: Callable[[Any], str]
    help: str


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{value!r} is not a name")
    return value


def _number(value: Any, parse: Callable[[str], float]) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{value!r} is not a number or a text with a unit")
    number = parse(value) if isinstance(value, str) else value
    if number < 0:
        raise InputError(f"{value!r} is negative")
    return number


def _size(value: Any) -> int:
    size = _number(value, parse_size)
    if size != int(size) or size == 0:
        raise InputError(f"{value!r} is not a whole number of bytes above 0")
    return int(size)


def _rate(value: Any) -> int:
    return int(_number(value, parse_rate))


def _duration(value: Any) -> float:
    return float(_number(value, parse_duration))


def _share(value: Any) -> float:
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    share = float(match[1]) / 100 if match else value
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError(f"{value!r} is not a share; write e.g. 0.01 or '1%'")
    return float(share)


def _block_size(value: Any) -> int:
    match = _SECTORS.fullmatch(value) if isinstance(value, str) else None
    size = int(match[1]) * SECTOR if match else _size(value)
    if size & (size - 1) or not _SMALLEST_BLOCK <= size <= 16 * MIB:
        hint = f"; did you mean '{size} sectors'?" if size < SECTOR else ""
        raise InputError(
            f"block size {value!r} is not a power of two from 8 sectors (4 KiB) to 16 MiB{hint}"
        )
    return size


def _choice(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise unknown("value", value, choices)
        return str(value)

    return parse


def _or_none(show: Callable[[float], str], zero: str) -> Callable[[Any], str]:
    return lambda value: show(value) if value else zero


def _show_block(size: int) -> str:
    return f"{size // SECTOR} sectors"


def _show_size(size: int) -> str:
    return format_size(size).replace(".0 ", " ")


AXES: Mapping[str, Axis] = {
    "method": Axis(_word, str, "how the guest is moved: vmferry, or a baseline"),
    "hypervisor": Axis(_word, str, "what the guest runs on"),
    "tracker": Axis(_word, str, "tracker of the disk; auto: the one that suits"),
    "transport": Axis(_word, str, "scheme of the connection"),
    "volume": Axis(_word, str, "volume plugin at the destination; auto: the one that suits"),
    "block_size": Axis(_block_size, _show_block, "granularity of the dirty maps"),
    "compression": Axis(_choice("auto", "none", "lz4", "zstd"), str, "compression on the link"),
    "bandwidth": Axis(_rate, _or_none(format_rate, "unshaped"), "what the link carries"),
    "latency": Axis(_duration, _or_none(format_duration, "0"), "delay of the link, each way"),
    "loss": Axis(_share, lambda value: f"{value:.3%}", "share of packets that are lost"),
    "limit": Axis(_rate, _or_none(format_rate, "none"), "vmferry's own bandwidth limit"),
    "policy": Axis(_word, str, "convergence policy, by name"),
    "workload": Axis(_word, str, "what the guest does, by name"),
    "disk_size": Axis(_size, _show_size, "size of the guest's disk"),
    "memory": Axis(_size, _show_size, "memory of the guest"),
}
"""All axes, in the order in which they are shown."""


def parse_value(axis: str, value: Any) -> Any:
    """A value of an axis as the file has it; raises ``InputError`` naming axis and value."""
    try:
        return AXES[axis].parse(value)
    except InputError as error:
        raise InputError(f"{axis}: {error}") from None


def show_value(axis: str, value: Any) -> str:
    """A value for people; ``None`` is one that makes no difference to the run."""
    return "-" if value is None else AXES[axis].show(value)


def cell_of(facts: Any) -> str:
    """Short identifier of everything that a run is done with; equal facts, equal identifier."""
    text = msgspec.json.encode(facts, order="sorted")
    return hashlib.sha256(text).hexdigest()[:16]
