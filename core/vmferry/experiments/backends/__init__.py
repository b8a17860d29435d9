"""The hypervisors that a matrix can name.

Every installed trial plugin is one, and some that are not real; ``backend`` gives one by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from vmferry.experiments.backends.base import VMFERRY, Backend
from vmferry.experiments.backends.model import ModelBackend
from vmferry.experiments.backends.qemu import QemuBackend
from vmferry.experiments.backends.simulation import SimulationBackend
from vmferry.experiments.backends.trial import TrialBackend
from vmferry.experiments.backends.xen import XenBackend
from vmferry.experiments.nearest import unknown
from vmferry.plugins import names

__all__ = ["VMFERRY", "Backend", "backend", "backend_names"]

_OTHERS: Mapping[str, type[Backend]] = {
    "model": ModelBackend,
    "simulation": SimulationBackend,
    "xen": XenBackend,
}
_TRIALS: Mapping[str, Callable[[], Backend]] = {"qemu": QemuBackend}
"""Trials that can do more than any trial plugin."""


def backend_names() -> list[str]:
    """Names of all there are."""
    return sorted({*names("trial"), *_OTHERS})


@lru_cache(maxsize=32)
def backend(name: str) -> Backend:
    """The backend of that name; raises ``InputError`` naming those there are."""
    if name in _OTHERS:
        return _OTHERS[name]()
    if name in names("trial"):
        return _TRIALS[name]() if name in _TRIALS else TrialBackend(name)
    raise unknown("hypervisor", name, backend_names())
