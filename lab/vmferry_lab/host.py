"""One host of a running laboratory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmferry_lab.domains import Domains
from vmferry_lab.errors import BootFailed, CommandFailed
from vmferry_lab.machine import Machine
from vmferry_lab.ssh import Ssh

__all__ = ["Host"]

_CLOCK = """\
rtc=/sys/class/rtc/rtc0/since_epoch
read -r then < $rtc
while read -r now < $rtc && [ "$now" = "$then" ]; do :; done
date -s "@$now"
"""
_ENDS = ("Kernel panic", "Panic on CPU", "You are in emergency mode")


@dataclass(frozen=True)
class Host:
    """A host: its QEMU, its ssh, its console log."""

    name: str
    ssh: Ssh
    machine: Machine
    console: Path

    @property
    def guests(self) -> Domains:
        """The guests on it."""
        return Domains(self)

    def run(self, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 600) -> str:
        """Run a command as root; see :meth:`vmferry_lab.ssh.Ssh.run`."""
        return self.ssh.run(command, stdin=stdin, timeout=timeout)

    def put(self, here: Path, there: str) -> None:
        """Copy a file or a folder's content to the host."""
        self.ssh.put(here, there)

    def get(self, there: str, here: Path) -> None:
        """Copy a file from the host."""
        self.ssh.get(there, here)

    def set_clock(self) -> None:
        """Set the host's clock, and with it Xen's, by the emulated RTC, which follows ours.

        Emulated hosts run behind, and one that was halted by as much. A guest that arrives takes
        the difference of both hosts' clocks for time in which it was suspended.
        """
        self.run(_CLOCK)

    def wait(self, *, timeout: float) -> None:
        """Wait until the host runs commands.

        Args:
            timeout: seconds.

        Raises:
            BootFailed: it crashed, or took longer; the message ends with its console's last lines.

        """
        deadline = time.monotonic() + timeout
        while not self._answers():
            if not self.machine.running():
                raise BootFailed(f"QEMU of {self.name} ended: {self._last_lines(self.machine.log)}")
            console = self._last_lines(self.console)
            if any(end in console for end in _ENDS):
                raise BootFailed(f"{self.name} crashed; see {self.console}:\n{console}")
            if time.monotonic() > deadline:
                raise BootFailed(f"{self.name} did not come up in {timeout:.0f} s:\n{console}")
            time.sleep(1)

    def reach(self, other: str, *, timeout: float) -> None:
        """Return once the LAN carries something to another host and back.

        Args:
            other: its name.
            timeout: seconds.

        Raises:
            BootFailed: it does not; the message has the host's interfaces.

        """
        try:
            self.run(f"ping -q -c 1 -w {timeout:.0f} {other}", timeout=timeout + 60)
        except CommandFailed as error:
            shown = self.run("ip -br address")
            raise BootFailed(f"{self.name} does not reach {other}:\n{shown}") from error

    def _answers(self) -> bool:
        try:
            self.ssh.run("systemctl is-system-running --wait >/dev/null; true", timeout=120)
        except CommandFailed:
            return False
        return True

    @staticmethod
    def _last_lines(log: Path) -> str:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(lines[-20:])
