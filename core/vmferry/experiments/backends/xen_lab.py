"""The laboratory that a run names: found, held against what a method needs, its network shaped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from vmferry.api import Options
from vmferry.errors import InputError
from vmferry.experiments.backends.xen_baselines import BASELINES
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import RunSpec
from vmferry.plugins.options import validate

__all__ = ["LabOptions", "check_lab", "lab_of", "lab_options", "open_lab", "shaped_hosts"]


class LabOptions(Options, frozen=True, kw_only=True):
    """The table ``[lab]`` of an experiment's file."""

    folder: Annotated[str, Meta(description="of a laboratory that is up; else $VMFERRY_LAB")] = ""
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
            "hypervisor 'xen' needs the laboratory, which is in the source tree alone: "
            "PYTHONPATH=lab, or pip install -e ."
        ) from error
    return Lab(root=Path(lab_options(spec).folder or os.environ.get("VMFERRY_LAB") or ".lab"))


def open_lab(spec: RunSpec) -> Any:
    """The laboratory that is up.

    Raises:
        InputError: its package is not here, or no laboratory is up in the folder.

    """
    lab = lab_of(spec)
    if not lab.is_up():
        raise InputError(f"no laboratory is up in {lab.root}: {_up(spec)}")
    return lab


def _up(spec: RunSpec) -> str:
    baseline = BASELINES.get(spec.parameters.method)
    return " ".join(["python -m vmferry_lab up", *([baseline.option] if baseline else [])])


def check_lab(spec: RunSpec) -> None:
    """Refuse a laboratory that is up without what a method needs.

    There need be none yet: it may be on a worker's machine, or brought up after the plan is made.
    """
    lab_options(spec)
    method = spec.parameters.method
    baseline = BASELINES.get(method)
    if baseline is None:
        return
    try:
        lab = lab_of(spec)
    except InputError:
        return
    if lab.is_up() and baseline.flavour not in lab.flavours:
        raise InputError(
            f"method {method!r}: the laboratory in {lab.root} is up without it; end it with "
            f"python -m vmferry_lab down, then {_up(spec)}"
        )


@contextmanager
def shaped_hosts(hosts: Any, parameters: Parameters, interface: str) -> Iterator[None]:
    """Real packets are delayed, lost and held back by netem (tc-netem(8)) while inside."""
    words = []
    if parameters.latency:
        words += ["delay", f"{parameters.latency * 1000:g}ms"]
    if parameters.loss:
        words += ["loss", f"{parameters.loss * 100:g}%"]
    if parameters.bandwidth:
        words += ["rate", f"{8 * parameters.bandwidth}bit"]
    shaped = []
    try:
        for host in hosts if words else ():
            host.run(["tc", "qdisc", "replace", "dev", interface, "root", "netem", *words])
            shaped.append(host)
        yield
    finally:
        for host in shaped:
            host.run(f"tc qdisc del dev {interface} root || true")
