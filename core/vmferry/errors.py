"""Everything vmferry raises on purpose, by what the caller can do next.

::

    VmferryError
    |-- InputError            the user's input is wrong; nothing was changed
    |   |-- OptionError       an option of a plugin: unknown, wrong type, out of range
    |   |-- PluginNotFound    no plugin of that kind and name; lists those there are
    |   `-- GuestNotFound     no guest of that name; lists those there are
    |-- PluginError           a plugin failed to load or broke its contract
    |-- CheckFailed           the check before a migration found reasons not to start
    |-- VolumeError           a disk cannot be used as asked
    |   |-- VolumeMissing     it does not exist
    |   |-- VolumeExists      it exists and would be overwritten
    |   |-- VolumeBusy        somebody else has it open for writing
    |   `-- VolumeGeometry    its size or sector size does not fit
    |-- TrackerError          writes can no longer be tracked; the migration cannot go on
    |-- HypervisorError       the hypervisor refused or failed
    |   `-- GuestStopped      the guest shut down, crashed or was destroyed by somebody else
    |-- LinkError             the peer cannot be reached; trying again may help
    |   |-- ConnectionLost    an established connection ended without being closed
    |   `-- LinkTimeout       nothing was heard for too long
    |-- ProtocolError         the peer broke the protocol; the connection is ended
    |   `-- DigestMismatch    data arrived that is not what was sent
    |-- PeerError             the peer reported an error of its own
    |-- Veto                  a policy stopped the migration before the switch
    `-- MigrationError        a migration ended without success; says where the guest runs

An ``InputError`` and its children are raised before anything is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmferry.api.findings import Finding

__all__ = [
    "CheckFailed",
    "ConnectionLost",
    "DigestMismatch",
    "GuestNotFound",
    "GuestStopped",
    "HypervisorError",
    "InputError",
    "LinkError",
    "LinkTimeout",
    "MigrationError",
    "OptionError",
    "PeerError",
    "PluginError",
    "PluginNotFound",
    "ProtocolError",
    "TrackerError",
    "Veto",
    "VmferryError",
    "VolumeBusy",
    "VolumeError",
    "VolumeExists",
    "VolumeGeometry",
    "VolumeMissing",
]


class VmferryError(Exception):
    """Root of everything vmferry raises on purpose."""


class InputError(VmferryError):
    """The user's input is wrong; the message names the input. Nothing was changed."""


class OptionError(InputError):
    """An option of a plugin is unknown, has the wrong type or is out of range."""


class PluginNotFound(InputError):
    """There is no plugin of that kind and name."""

    def __init__(self, kind: str, name: str, available: Iterable[str]) -> None:
        self.kind, self.name, self.available = kind, name, sorted(available)
        known = ", ".join(self.available) or "none is installed"
        super().__init__(f"no {kind} plugin named {name!r}; there are: {known}")


class GuestNotFound(InputError):
    """The hypervisor knows no guest of that name."""

    def __init__(self, name: str, available: Iterable[str]) -> None:
        self.name, self.available = name, sorted(available)
        known = ", ".join(self.available) or "no guest is running"
        super().__init__(f"no guest named {name!r}; there are: {known}")


class PluginError(VmferryError):
    """A plugin failed to load or broke its contract; names the plugin and its distribution."""


class CheckFailed(VmferryError):
    """The check before a migration found reasons not to start; nothing was changed."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("; ".join(finding.text for finding in findings) or "the check failed")


class VolumeError(VmferryError):
    """A disk cannot be used as asked; the message names it."""


class VolumeMissing(VolumeError):
    """The disk does not exist."""


class VolumeExists(VolumeError):
    """The disk exists already and would be overwritten."""


class VolumeBusy(VolumeError):
    """Somebody else has the disk open for writing."""


class VolumeGeometry(VolumeError):
    """The disk's size or sector size does not fit."""


class TrackerError(VmferryError):
    """Writes can no longer be tracked."""


class HypervisorError(VmferryError):
    """The hypervisor refused or failed."""


class GuestStopped(HypervisorError):
    """The guest shut down, crashed or was destroyed by somebody else."""


class LinkError(VmferryError):
    """The peer cannot be reached; trying again may help."""


class ConnectionLost(LinkError):
    """An established connection ended without being closed in good order."""


class LinkTimeout(LinkError):
    """Nothing was heard from the peer for too long."""


class ProtocolError(VmferryError):
    """The peer sent what the protocol does not allow; names the message and the field."""


class DigestMismatch(ProtocolError):
    """Data or a message was changed on its way: its digest or checksum differs. It is not used."""


class PeerError(VmferryError):
    """The peer reported an error of its own."""


class Veto(VmferryError):
    """A policy stopped the migration before the switch; the guest runs on at the source."""


class MigrationError(VmferryError):
    """A migration ended without success.

    Attributes:
        phase: the phase it ended in, by name.
        guest: where the guest is: ``"source"``, ``"destination"`` or ``"unknown"``.

    """

    def __init__(self, message: str, *, phase: str, guest: str) -> None:
        self.phase, self.guest = phase, guest
        super().__init__(message)
