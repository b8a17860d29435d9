"""The file that describes an experiment: read, and refused where it is wrong.

::

    [experiment]
    name = "block-sizes"
    repetitions = 5
    seed = 1

    [matrix]                                  # every product of these
    block_size = ["8 sectors", "64 sectors"]
    workload = ["idle", "mine"]

    [[exclude]]                               # but not these
    workload = "mine"
    block_size = "8 sectors"

    [workload.mine]
    based_on = "web"
    write_rate = 100

    [policy.eager]
    max_rounds = 2

    [plugins.trial.process]                   # options of plugins, for all runs
    queue_depth = 8

``[[matrix]]`` may be repeated: the experiment is all products together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vmferry.api import Load, Options
from vmferry.engine.policy import PolicyOptions
from vmferry.errors import InputError
from vmferry.experiments.nearest import known
from vmferry.experiments.parameters import AXES, parse_value
from vmferry.experiments.policies import read_policies
from vmferry.experiments.textfiles import read_text
from vmferry.experiments.workloads import read_workloads
from vmferry.plugins import KINDS, OptionTable
from vmferry.plugins.options import validate

__all__ = ["Definition", "Head", "Product", "read_definition"]

Product = Mapping[str, tuple[Any, ...]]
"""Values by axis."""
_MOST = 1 << 20
_TABLES = ("experiment", "matrix", "exclude", "workload", "policy", "plugins", "lab", "model")


class Head(Options, frozen=True, kw_only=True):
    """What the table ``[experiment]`` says."""

    name: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names it in the report"),
    ] = ""
    description: Annotated[str, Meta(description="what it is about, for the report")] = ""
    repetitions: Annotated[int, Meta(ge=1, le=10000, description="runs of each cell")] = 3
    seed: Annotated[int, Meta(ge=0, lt=1 << 62, description="of the order and of the guests")] = 1
    database: Annotated[str, Meta(description="the database, beside the file")] = ""
    before: Annotated[
        float,
        Meta(ge=0, description="the guest runs before it is moved", extra={"unit": "seconds"}),
    ] = 2.0
    after: Annotated[
        float,
        Meta(ge=0, description="the guest runs after it was moved", extra={"unit": "seconds"}),
    ] = 2.0
    timeout: Annotated[
        float,
        Meta(gt=0, description="a run that takes longer has failed", extra={"unit": "seconds"}),
    ] = 600.0
    sample: Annotated[
        float,
        Meta(ge=0.01, le=60, description="time between samples", extra={"unit": "seconds"}),
    ] = 0.1


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment as its file describes it.

    Attributes:
        path: the file.
        text: all of it.
        head: its ``[experiment]``.
        products: of each the values by axis.
        exclude: cells that match all of one of these are left out.
        workloads: what guests may do, by name.
        policies: when PUSH may be over, by name.
        options: options of plugins by kind and name.
        lab: what the laboratory's backend is told.
        model: what the model assumes, where it is not as usual.

    """

    path: Path
    text: str
    head: Head
    products: tuple[Product, ...]
    exclude: tuple[Product, ...] = ()
    workloads: dict[str, Load]
    policies: dict[str, PolicyOptions]
    options: OptionTable = {}
    lab: dict[str, Any] = {}
    model: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The experiment's name; that of the file if it gives none."""
        return self.head.name or self.path.stem

    @property
    def database(self) -> Path:
        """Where the results are."""
        return self.path.parent / (self.head.database or f"{self.path.stem}.sqlite")


def read_definition(path: Path) -> Definition:
    """Read an experiment's file.

    Raises:
        InputError: it cannot be read or is wrong; names the file, the key and the nearest there is.

    """
    text = read_text(path, _MOST)
    try:
        return _definition(path, text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _definition(path: Path, text: str) -> Definition:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}") from error
    known("table", content, _TABLES)
    head = _table(content, "experiment")
    known("[experiment] key", head, Head.__struct_fields__)
    read = validate("[experiment]", Head, head)
    assert isinstance(read, Head)
    return Definition(
        path=path,
        text=text,
        head=read,
        products=_products(content),
        exclude=tuple(_product("exclude", one) for one in _tables(content, "exclude")),
        workloads=read_workloads(_table(content, "workload"), path.parent),
        policies=read_policies(_table(content, "policy")),
        options=_options(_table(content, "plugins")),
        lab=_table(content, "lab"),
        model=_table(content, "model"),
    )


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{name!r} must be a table, [{name}]")
    return table


def _tables(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    tables = content.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise InputError(f"{name!r} must be a list of tables, [[{name}]]")
    return tables


def _products(content: Mapping[str, Any]) -> tuple[Product, ...]:
    matrix = content.get("matrix")
    if matrix is None:
        raise InputError("there is no [matrix]: nothing to run")
    tables = _tables(content, "matrix") if isinstance(matrix, list) else [_table(content, "matrix")]
    return tuple(_product("matrix", table) for table in tables)


def _product(name: str, table: Mapping[str, Any]) -> Product:
    known(f"[{name}] axis", table, AXES)
    return {axis: _values(name, axis, value) for axis, value in table.items()}


def _values(name: str, axis: str, value: Any) -> tuple[Any, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"[{name}] {axis} has no value")
    try:
        return tuple(dict.fromkeys(parse_value(axis, one) for one in values))
    except InputError as error:
        raise InputError(f"[{name}] {error}") from None


def _options(tables: Mapping[str, Any]) -> OptionTable:
    known("[plugins] kind", tables, KINDS)
    for kind, plugins in tables.items():
        for name, options in (plugins if isinstance(plugins, dict) else {kind: plugins}).items():
            if not isinstance(options, dict):
                raise InputError(f"[plugins.{kind}] {name!r} must be a table of options")
    return tables
