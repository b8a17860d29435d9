"""The laboratory's Xen hosts: held against what a method needs, their network shaped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmferry.errors import InputError
from vmferry.experiments.backends.laboratory import lab_of, lab_options
from vmferry.experiments.backends.xen_baselines import BASELINES
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import RunSpec

__all__ = ["check_lab", "open_lab", "shaped_hosts"]


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
