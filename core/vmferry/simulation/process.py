"""A process of a simulated host, which can die at once."""

from __future__ import annotations

from collections.abc import Callable

from vmferry.simulation.trouble import HostTrouble

__all__ = ["ProcessDied", "SimProcess"]


class ProcessDied(Exception):
    """A dead process tried to do something; nothing came of it."""


class SimProcess:
    """Everything that goes away when the migration's program is killed on one host.

    Disks, connections and exports are opened on behalf of a process. After ``kill`` none of them
    does anything for it any more, so that clean-up code of cancelled tasks has no effect.

    Attributes:
        host: name of the host it runs on.
        alive: whether it has not been killed.
        trouble: errors that it meets.

    """

    def __init__(self, host: str, trouble: HostTrouble | None = None) -> None:
        self.host = host
        self.trouble = trouble or HostTrouble()
        self.alive = True
        self._mourners: list[Callable[[], None]] = []

    def check(self) -> None:
        """Raise ``ProcessDied`` if it was killed."""
        if not self.alive:
            raise ProcessDied(f"the process on {self.host} was killed")

    def at_death(self, action: Callable[[], None]) -> None:
        """Have ``action`` called by ``kill``."""
        self._mourners.append(action)

    def kill(self) -> None:
        """End it as SIGKILL does. May be called twice."""
        if self.alive:
            self.alive = False
            for action in self._mourners:
                action()
