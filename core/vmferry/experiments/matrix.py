"""From a definition to its runs: products, exclusions, cells that are the same, random order."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from vmferry.errors import InputError, VmferryError
from vmferry.experiments.backends import VMFERRY, backend
from vmferry.experiments.definition import Definition, Product
from vmferry.experiments.nearest import unknown
from vmferry.experiments.parameters import AXES, Parameters, show_value
from vmferry.experiments.results import RunSpec

__all__ = ["Cell", "Run", "make_cells", "order"]

_MOST = 100_000
_SHOWN = 10
_DEFAULTS = Parameters()
_FAVOURS = {
    "compression": ("none", "compression is {} for vmferry, and baselines beside it have none"),
    "limit": (0, "vmferry keeps to a limit of {}, and baselines beside it to none"),
}
"""Of axes that a baseline does not have: the value that is like it, and what else is noted."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of the matrix, checked.

    Attributes:
        spec: what its runs are done with, but for the seed.
        irrelevant: axes that make no difference to it; it stands for all their values.
        notes: in what its runs differ from what was asked for.

    """

    spec: RunSpec
    irrelevant: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> dict[str, Any]:
        """Its value on each axis, ``None`` where that makes no difference."""
        values = msgspec.structs.asdict(self.spec.parameters)
        return {name: None if name in self.irrelevant else values[name] for name in AXES}


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A repetition of a cell; ``position`` is its place in the order of all."""

    cell: Cell
    repetition: int
    position: int
    spec: RunSpec


def make_cells(definition: Definition) -> list[Cell]:
    """Every cell of an experiment, in the order of the file.

    Raises:
        InputError: a cell cannot be run, with the reason; all that cannot are listed.

    """
    cells: dict[str, Cell] = {}
    refused: dict[str, list[str]] = {}
    for values in _combinations(definition):
        try:
            cell = _cell(definition, values)
            cells.setdefault(cell.spec.cell, cell)
        except VmferryError as error:
            refused.setdefault(str(error), []).append(_name(definition, values))
    if refused:
        raise InputError(_refusal(definition, refused))
    if not cells:
        raise InputError(f"{definition.path}: every cell of the matrix is excluded")
    return _noted(list(cells.values()))


def _noted(cells: list[Cell]) -> list[Cell]:
    """The cells; those of vmferry, which have all axes, note what a baseline beside them lacks."""
    lacking: dict[str, set[str]] = {}
    for cell in cells:
        if cell.spec.parameters.method != VMFERRY:
            lacking.setdefault(cell.spec.parameters.hypervisor, set()).update(cell.irrelevant)
    return [
        msgspec.structs.replace(cell, notes=(*cell.notes, *_unlike(cell, lacking)))
        for cell in cells
    ]


def _unlike(cell: Cell, lacking: Mapping[str, set[str]]) -> Iterator[str]:
    parameters = cell.spec.parameters
    for axis, (usual, text) in _FAVOURS.items():
        value = getattr(parameters, axis)
        has = axis not in cell.irrelevant and value != usual
        if has and axis in lacking.get(parameters.hypervisor, ()):
            yield text.format(show_value(axis, value))


def _combinations(definition: Definition) -> Iterator[dict[str, Any]]:
    count = sum(_size(product) for product in definition.products)
    if count > _MOST:
        raise InputError(f"{definition.path}: {count} cells are more than {_MOST}")
    for product in definition.products:
        for values in itertools.product(*product.values()):
            chosen = dict(zip(product, values, strict=True))
            if not any(_matches(chosen, one) for one in definition.exclude):
                yield chosen


def _size(product: Product) -> int:
    size = 1
    for values in product.values():
        size *= len(values)
    return size


def _matches(chosen: Mapping[str, Any], exclusion: Product) -> bool:
    return all(
        chosen.get(axis, getattr(_DEFAULTS, axis)) in values for axis, values in exclusion.items()
    )


def _cell(definition: Definition, values: Mapping[str, Any]) -> Cell:
    parameters = Parameters(**values)
    chosen = backend(parameters.hypervisor)
    if parameters.workload not in definition.workloads:
        raise unknown("workload", parameters.workload, definition.workloads)
    if parameters.policy not in definition.policies:
        raise unknown("policy", parameters.policy, definition.policies)
    irrelevant = chosen.irrelevant(parameters.method)
    usual = {axis: getattr(_DEFAULTS, axis) for axis in irrelevant}
    parameters = msgspec.structs.replace(parameters, **usual)
    head = definition.head
    spec = RunSpec(
        parameters=parameters,
        load=definition.workloads[parameters.workload],
        policy=definition.policies[parameters.policy],
        options=msgspec.to_builtins(definition.options),
        lab=definition.lab,
        model=definition.model,
        before=head.before,
        after=head.after,
        timeout=head.timeout,
        sample=head.sample,
    )
    chosen.check_fio(spec)
    return Cell(spec=spec, irrelevant=irrelevant, notes=chosen.check(spec))


def _name(definition: Definition, values: Mapping[str, Any]) -> str:
    varied = [axis for product in definition.products for axis in product if len(product[axis]) > 1]
    shown = [f"{axis} {show_value(axis, values[axis])}" for axis in values if axis in varied]
    return ", ".join(shown) or "the only cell"


def _refusal(definition: Definition, refused: Mapping[str, list[str]]) -> str:
    count = sum(len(names) for names in refused.values())
    lines = [f"{definition.path}: {count} cells of the matrix cannot be run; [[exclude]] them"]
    if count == 1:
        lines = [f"{definition.path}: a cell of the matrix cannot be run"]
    for reason, names in refused.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"  {reason}")
        lines.append(f"    in {'; '.join(names[:_SHOWN])}{more}")
    return "\n".join(lines)


def order(definition: Definition, cells: list[Cell]) -> list[Run]:
    """All runs in the order in which they are done.

    One repetition of every cell comes before the next repetition of any, so that a sweep that is
    stopped has whole repetitions, and slow changes of the machine meet all cells alike. Within a
    repetition the order is random, by the experiment's seed.
    """
    runs: list[Run] = []
    for repetition in range(definition.head.repetitions):
        block = list(cells)
        random.Random(f"{definition.head.seed}/{repetition}").shuffle(block)  # noqa: S311
        for cell in block:
            seed = _seed(definition.head.seed, cell.spec.cell, repetition)
            spec = msgspec.structs.replace(cell.spec, seed=seed)
            runs.append(Run(cell=cell, repetition=repetition, position=len(runs), spec=spec))
    return runs


def _seed(seed: int, cell: str, repetition: int) -> int:
    """A seed below 2**32 of a run's own, the same whenever it is made."""
    text = f"{seed}/{cell}/{repetition}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
