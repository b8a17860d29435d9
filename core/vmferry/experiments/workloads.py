"""Workloads by name: four that every experiment knows, and those that a file adds.

Three are after the servers with which the block-bitmap literature moves whole virtual machines: a
web server, a video server, and one that does nothing but write (Bonnie++ there).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from vmferry.api import Load
from vmferry.errors import InputError
from vmferry.experiments.fiojobs import read_job
from vmferry.experiments.nearest import known, unknown
from vmferry.plugins.options import validate
from vmferry.units import KIB

__all__ = ["WORKLOADS", "read_workloads"]

WORKLOADS: Mapping[str, Load] = {
    "idle": Load(memory_rate=20),
    "web": Load(write_rate=40, read_rate=160, pattern="hotspot", memory_rate=500),
    "video": Load(
        write_rate=1, read_rate=100, request=64 * KIB, pattern="sequential", memory_rate=100
    ),
    "diabolical": Load(
        write_rate=1, full_speed=True, request=64 * KIB, pattern="sequential", memory_rate=1000
    ),
}
"""idle: a little memory. web: few small writes, most to a tenth of the disk, and reads. video:
large reads one after the other, a write now and then. diabolical: the whole disk written from start
to end, again and again, as fast as it goes."""


def read_workloads(tables: Mapping[str, Any], folder: Path) -> dict[str, Load]:
    """All workloads by name, those of a file's ``[workload.NAME]`` tables among them.

    ``based_on`` names one to begin with; paths of traces and of fio's job files are relative to
    ``folder``. A job file is read here: what is run is what it says now.

    Raises:
        InputError: a key or value is wrong; names it.

    """
    loads = dict(WORKLOADS)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"[workload] {name!r} must be a table, [workload.{name}]")
        loads[name] = _workload(name, dict(table), loads, folder)
    return loads


def _workload(name: str, table: dict[str, Any], loads: Mapping[str, Load], folder: Path) -> Load:
    base = table.pop("based_on", "idle")
    if not isinstance(base, str) or base not in loads:
        raise unknown(f"[workload.{name}] based_on", base, loads)
    known(f"[workload.{name}] key", table, [*Load.__struct_fields__, "based_on"])
    if "fio" in table or (table and loads[base].fio):
        return _fio(name, table, base, folder)
    if "trace" in table:
        table["trace"] = str(folder / table["trace"])
    given = msgspec.structs.asdict(loads[base]) | table
    load = validate(f"workload {name!r}", Load, given)
    assert isinstance(load, Load)
    return load


def _fio(name: str, table: Mapping[str, Any], base: str, folder: Path) -> Load:
    """The job file says all that the guest does: what else is in the table would be ignored."""
    others = sorted(table.keys() - {"fio"})
    if others or base != "idle":
        found = others[0] if others else "based_on"
        raise InputError(
            f"[workload.{name}] {found!r} does not go with fio: the job says what the guest does"
        )
    if not isinstance(table["fio"], str):
        raise InputError(f"[workload.{name}] fio: {table['fio']!r} is not the path of a job file")
    return Load(memory_rate=0, fio=read_job(folder / table["fio"]))
