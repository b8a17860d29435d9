"""What an experiment wishes for, as options of the ``process`` trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmferry.api.load import Load, TrialPlan, TrialWish
from vmferry.errors import InputError
from vmferry_hypervisors.process.trace import read_trace

__all__ = ["make_plan"]

_UNIT = 4096
_PAGE = 4096
_MEMORY_SHARE = 4
"""One part in so many of the memory is dirtied."""


def make_plan(wish: TrialWish) -> TrialPlan:
    """The trial's options; raises ``InputError`` for what it cannot be."""
    for kind, chosen, only in (("tracker", wish.tracker, "export"), ("volume", wish.volume, "raw")):
        if chosen not in ("", only):
            raise InputError(f"a process guest's {kind} is {only!r}, not {chosen!r}")
    if wish.memory % _PAGE:
        raise InputError(f"memory {wish.memory} is not a multiple of {_PAGE} bytes")
    if wish.disk_size % _UNIT:
        raise InputError(f"disk size {wish.disk_size} is not a multiple of {_UNIT} bytes")
    if wish.load.trace:
        read_trace(Path(wish.load.trace))
    options = {
        "memory": wish.memory,
        "memory_set": wish.memory // _MEMORY_SHARE // _PAGE * _PAGE,
        "prefill": 1.0,
        "seed": wish.seed,
    }
    return TrialPlan(options=options | _load(wish.load, wish.disk_size))


def _load(load: Load, disk_size: int) -> dict[str, Any]:
    unit = min(_UNIT, load.request & -load.request)
    used = int(disk_size * load.span) // unit * unit
    return {
        "unit": unit,
        "io_size": load.request,
        "pattern": load.pattern,
        "working_set": used if load.span < 1 else 0,
        "write_rate": 0.0 if load.full_speed else load.write_rate + load.read_rate,
        "idle": load.idle,
        "read_ratio": load.read_ratio,
        "memory_rate": load.memory_rate,
        "trace": load.trace,
        "trace_speed": 0.0 if load.full_speed else 1.0,
    }
