"""The plugins of one process on a simulated host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vmferry.api.hypervisor import Hypervisor
from vmferry.api.tracker import Tracker
from vmferry.api.volume import VolumeDriver
from vmferry.errors import PluginNotFound

__all__ = ["SimRegistry"]


@dataclass(frozen=True)
class SimRegistry:
    """The engine's ``Registry`` with one plugin of each kind, named ``sim``."""

    make_volume: Callable[[], VolumeDriver[Any]]
    make_tracker: Callable[[], Tracker[Any]]
    make_hypervisor: Callable[[], Hypervisor[Any]]

    def volume(self, name: str) -> VolumeDriver[Any]:
        """The volume driver."""
        self._check("volume", name)
        return self.make_volume()

    def tracker(self, name: str) -> Tracker[Any]:
        """A tracker for one disk."""
        self._check("tracker", name)
        return self.make_tracker()

    def hypervisor(self, name: str) -> Hypervisor[Any]:
        """A hypervisor for one job."""
        self._check("hypervisor", name)
        return self.make_hypervisor()

    def options(self, kind: str, name: str) -> Mapping[str, Any]:
        """Nothing was set."""
        return {}

    def _check(self, kind: str, name: str) -> None:
        if name != "sim":
            raise PluginNotFound(kind, name, ["sim"])
