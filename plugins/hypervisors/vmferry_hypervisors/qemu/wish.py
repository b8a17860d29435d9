"""What an experiment wishes for, as options of the ``qemu`` trial."""

from __future__ import annotations

from typing import Any

import msgspec

from vmferry.api.load import Load, TrialPlan, TrialWish
from vmferry.errors import InputError
from vmferry_hypervisors.qemu.workload.trial_options import QemuTrialOptions, make_program

__all__ = ["check_plugins", "make_plan"]

_PAGE = 4096
_REQUEST = 4096
_VOLUMES = ("", "raw", "qcow2")


def check_plugins(wish: TrialWish) -> None:
    """Raise ``InputError`` for a tracker or a volume that no guest in QEMU can have."""
    if wish.tracker not in ("", "qcow2"):
        raise InputError(f"a QEMU guest's tracker is 'qcow2', not {wish.tracker!r}")
    if wish.volume not in _VOLUMES:
        raise InputError(f"a QEMU guest's volume is 'raw' or 'qcow2', not {wish.volume!r}")


def make_plan(wish: TrialWish) -> TrialPlan:
    """The trial's options; raises ``InputError`` for what it cannot be."""
    check_plugins(wish)
    if wish.load.trace:
        raise InputError("a QEMU guest of a trial replays no traces: it has no operating system")
    options: dict[str, Any] = {
        "memory": wish.memory,
        "memory_set": wish.memory // 8 // _PAGE * _PAGE,
        "memory_fill": wish.memory // 4 // _PAGE * _PAGE,
        "prefill": 1.0,
        "seed": wish.seed,
        **_load(wish.load, wish.disk_size),
    }
    try:
        make_program(msgspec.convert(options, QemuTrialOptions), wish.disk_size)
    except msgspec.ValidationError as error:
        raise InputError(f"a QEMU guest of a trial cannot be that: {error}") from None
    return TrialPlan(options=options, notes=_notes(wish.load))


def _load(load: Load, disk_size: int) -> dict[str, Any]:
    return {
        "write_rate": 0.0 if load.full_speed else load.write_rate + load.read_rate,
        "idle": load.idle,
        "read_ratio": min(load.read_ratio, 0.99),
        "part_ratio": 0.0,
        "memory_rate": load.memory_rate,
        "working_set": int(disk_size * load.span) // _PAGE * _PAGE if load.span < 1 else 0,
    }


def _notes(load: Load) -> tuple[str, ...]:
    if load.idle or (load.request == _REQUEST and load.pattern == "random"):
        return ()
    return (
        "the QEMU guest's requests are of 4 KiB and at random places, "
        f"not of {load.request} bytes and {load.pattern}: it knows no others",
    )
