"""The laboratory that a run names, which may be up, or only have built what a guest boots from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from vmferry.api import Options
from vmferry.errors import InputError
from vmferry.experiments.results import RunSpec
from vmferry.plugins.options import validate

__all__ = ["LabOptions", "lab_of", "lab_options"]


class LabOptions(Options, frozen=True, kw_only=True):
    """The table ``[lab]`` of an experiment's file."""

    folder: Annotated[str, Meta(description="of a laboratory; else $VMFERRY_LAB")] = ""
    interface: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9._-]+$", description="the hosts' way to each other")
    ] = "xenbr0"


def lab_options(spec: RunSpec) -> LabOptions:
    """The options of a run; raises ``InputError`` if they are none."""
    found = validate("[lab]", LabOptions, spec.lab)
    assert isinstance(found, LabOptions)
    return found


def lab_of(spec: RunSpec) -> Any:
    """The laboratory that a run names, up or not.

    Raises:
        InputError: its package is not here.

    """
    try:
        from vmferry_lab import Lab  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise InputError(
            f"{_who(spec)} needs the laboratory, which is in the source tree alone: "
            "PYTHONPATH=lab, or pip install -e ."
        ) from error
    return Lab(root=Path(lab_options(spec).folder or os.environ.get("VMFERRY_LAB") or ".lab"))


def _who(spec: RunSpec) -> str:
    name = f"hypervisor {spec.parameters.hypervisor!r}"
    return f"workload {spec.parameters.workload!r} with {name}" if spec.load.fio else name
