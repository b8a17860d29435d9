"""What a hypervisor of the matrix is to the sweep: something that a run can be done with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from vmferry.errors import InputError
from vmferry.experiments.nearest import unknown
from vmferry.experiments.parameters import AXES
from vmferry.experiments.results import Result, RunSpec

__all__ = ["VMFERRY", "Backend"]

VMFERRY = "vmferry"
"""The method that is no baseline."""
_ENGINE_ONLY = frozenset({"tracker", "transport", "volume", "block_size", "compression", "policy"})


class Backend(ABC):
    """Runs migrations of one kind of guest, by vmferry and by what it is compared with.

    Attributes:
        name: as the axis ``hypervisor`` has it.
        summary: one line, for people.
        real: whether a guest is moved; otherwise it is only reckoned how that would go.
        runs_fio: whether its guests can run fio.

    """

    name: str
    summary: ClassVar[str]
    real: ClassVar[bool] = True
    runs_fio: ClassVar[bool] = False

    @property
    def methods(self) -> Mapping[str, str]:
        """Methods by name, each with one line on what it does."""
        return {VMFERRY: "PUSH, STOP, PULL"}

    def irrelevant(self, method: str) -> frozenset[str]:
        """Axes that make no difference to a method: of cells that differ in them one is run."""
        return frozenset() if method == VMFERRY else _ENGINE_ONLY | {"limit"}

    def check_method(self, spec: RunSpec) -> None:
        """Raise ``InputError`` if there is no such method."""
        if spec.parameters.method not in self.methods:
            raise unknown(f"method of {self.name}", spec.parameters.method, self.methods)

    def check_fio(self, spec: RunSpec) -> None:
        """Raise ``InputError`` if fio is asked for and the guest can run no program."""
        if spec.load.fio and not self.runs_fio:
            raise InputError(
                f"workload {spec.parameters.workload!r}: fio runs inside a guest, and only those "
                f"of hypervisors 'qemu' and 'xen' have a system to run it: not {self.name!r}"
            )

    @abstractmethod
    def check(self, spec: RunSpec) -> tuple[str, ...]:
        """Say in what a run will differ from what was asked for.

        Starts nothing. Raises ``InputError`` with the reason if the run cannot be done at all.
        """

    def ready(self, spec: RunSpec) -> None:  # noqa: B027  # most guests need nothing
        """Raise ``InputError`` if this machine lacks what a run needs and was to be made before.

        Asked before the first run that is done here; ``check`` is asked for plans and reports too.
        """

    @abstractmethod
    def estimate(self, spec: RunSpec) -> float:
        """About how many seconds a run takes, for want of one that was done."""

    @abstractmethod
    async def run(self, spec: RunSpec, result: Result) -> None:
        """Do a run and put what is measured into ``result``, also if it fails halfway.

        Raises whatever went wrong; nothing of the run is left behind.
        """

    @staticmethod
    def refuse(spec: RunSpec, axes: Mapping[str, object], reason: str) -> None:
        """Raise ``InputError`` if one of the ``axes`` has another value than the one given."""
        for axis, only in axes.items():
            value = getattr(spec.parameters, axis)
            if value != only:
                raise InputError(f"{axis} {AXES[axis].show(value)}: {reason}")
