"""A domain's configuration, libxl's JSON: what is read of it, refused in it and changed on the way.

It comes from the network at the destination, where xl builds a domain from it with all its powers.
So only guests of known shape are taken: what would give a guest a part of the host beyond memory,
processors, disks that were agreed on and network interfaces is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from vmferry.api.findings import Finding
from vmferry.errors import HypervisorError, InputError
from vmferry.units import KIB, MIB

__all__ = [
    "Attachment",
    "DomainConfig",
    "decode_config",
    "encode_config",
    "parse_bridges",
]

VERSION = 1

_KNOWN = frozenset(
    (
        "c_info",
        "b_info",
        "disks",
        "nics",
        "on_poweroff",
        "on_reboot",
        "on_watchdog",
        "on_crash",
        "on_soft_reset",
        "xend_suspend_evtchn_compat",
    )
)
_WHY = {
    "pv": "pv needs shadow paging, which distributions build Xen without",
    "hvm": "what is written through an hvm guest's emulated disks is not tracked",
}
_RISKY_BUILD = ("device_model", "stubdomain_kernel", "stubdomain_ramdisk", "bootloader")
_SHADOW_PER_VCPU = MIB
_EXTRA = 4 * MIB


class Attachment(NamedTuple):
    """How a disk is attached here: the path for ``pdev_path`` and the hotplug script, or none."""

    path: str
    script: str = ""


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels in ``Guest.config``."""

    version: int
    domain: dict[str, Any]


def encode_config(domain: Mapping[str, Any]) -> bytes:
    """A configuration for ``Guest.config``."""
    return msgspec.json.encode(_Envelope(VERSION, dict(domain)))


def decode_config(data: bytes) -> DomainConfig:
    """What a peer encoded, which is untrusted.

    Raises:
        HypervisorError: it cannot be understood.

    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HypervisorError(f"the guest's configuration is not understood: {error}") from error
    if envelope.version != VERSION:
        raise HypervisorError(
            f"the guest's configuration is of version {envelope.version}; {VERSION} is known"
        )
    return DomainConfig(envelope.domain)


def parse_bridges(text: str) -> dict[str, str]:
    """Bridges here by their names there, of ``OLD=NEW,OLD=NEW``; raises ``InputError``."""
    bridges = {}
    for pair in filter(None, text.split(",")):
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not (old and equals and new):
            raise InputError(f"option bridges: {pair!r}: write OLD=NEW,OLD=NEW")
        bridges[old] = new
    return bridges


class DomainConfig:
    """A domain's configuration.

    Raises:
        HypervisorError: it has no shape of a domain's configuration.

    """

    def __init__(self, domain: Mapping[str, Any]) -> None:
        self._domain = dict(domain)
        try:
            create, build = self._domain["c_info"], self._domain["b_info"]
            self.name = str(create["name"])
            self.uuid = str(create.get("uuid", ""))
            self.type = str(create["type"])
            self.vcpus = int(build["max_vcpus"])
            self.memory = int(build["max_memkb"]) * KIB
            self._shadow = int(build.get("shadow_memkb", 0)) * KIB
            self._disks: list[dict[str, Any]] = [dict(disk) for disk in domain.get("disks", [])]
            self._nics: list[dict[str, Any]] = [dict(nic) for nic in domain.get("nics", [])]
            self._build: dict[str, Any] = dict(build)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HypervisorError(f"the guest's configuration lacks {error}") from error
        if self.memory < 0 or self.vcpus < 1 or self._shadow < 0:
            raise HypervisorError("the guest's configuration has no possible memory or processors")

    @classmethod
    def parse(cls, text: bytes) -> DomainConfig:
        """Of libxl's JSON; raises ``HypervisorError``."""
        try:
            return cls(msgspec.json.decode(text, type=dict[str, Any]))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise HypervisorError(f"the guest's configuration is no JSON: {error}") from error

    @property
    def needed_memory(self) -> int:
        """Bytes of host memory to build the guest: its own, its shadow and some for Xen's tables.

        ``libxl__get_required_shadow_memory`` and ``libxl_domain_need_memory``.
        """
        shadow = self._shadow or self.vcpus * _SHADOW_PER_VCPU + self.memory // 128
        return self.memory + shadow + _EXTRA

    @property
    def hap(self) -> bool:
        """Whether it uses hardware assisted paging, if the host has it."""
        return str(self._domain["c_info"].get("hap", "True")) != "False"

    @property
    def disks(self) -> Mapping[str, Mapping[str, Any]]:
        """Disks with something in them by ``vdev``; an empty drive has no path."""
        return {str(disk.get("vdev")): disk for disk in self._disks if disk.get("pdev_path")}

    @property
    def bridges(self) -> Sequence[str]:
        """Bridges its network interfaces are on."""
        return [str(nic["bridge"]) for nic in self._nics if nic.get("bridge")]

    def findings(self) -> list[Finding]:
        """Reasons why such a guest is not migrated, whatever the host."""
        found = []
        if self.type != "pvh":
            text = f"guest {self.name} is of type {self.type}; only pvh guests are migrated"
            remedy = 'give it type="pvh" in its configuration and start it anew'
            found.append(Finding.error("guest-type", f"{text}: {_WHY.get(self.type)}", remedy))
        for section in sorted(self._domain):
            if section in _KNOWN or not self._domain[section]:
                continue
            text = f"guest {self.name} has {section}, which cannot be moved to another host"
            found.append(Finding.error("guest-devices", text, f"detach its {section} first"))
        for field in _RISKY_BUILD:
            if self._build.get(field):
                text = f"guest {self.name} has {field} set, which names a program of the host"
                found.append(Finding.error("guest-build", text, f"start it without {field}"))
        for nic in self._nics:
            if "/" in str(nic.get("script", "")).removeprefix("/etc/xen/scripts/"):
                text = f"guest {self.name}: network script {nic['script']} is outside /etc/xen"
                found.append(Finding.error("guest-devices", text, "use a script of Xen's own"))
        return found

    def localized(
        self, name: str, disks: Mapping[str, Attachment], bridges: Mapping[str, str]
    ) -> bytes:
        """The configuration with the disks, name and bridges of this host, as JSON.

        Raises:
            HypervisorError: its disks are not those of ``disks``.

        """
        if set(self.disks) != set(disks):
            raise HypervisorError(
                f"guest {self.name} has disks {sorted(self.disks)}, {sorted(disks)} were prepared"
            )
        domain = copy.deepcopy(self._domain)
        domain["c_info"]["name"] = name
        for disk in domain.get("disks", []):
            if disk.get("pdev_path"):
                _attach(disk, disks[str(disk["vdev"])])
        for nic in domain.get("nics", []):
            if nic.get("bridge") in bridges:
                nic["bridge"] = bridges[nic["bridge"]]
        return msgspec.json.encode(domain)


def _attach(disk: dict[str, Any], attachment: Attachment) -> None:
    disk["pdev_path"] = attachment.path
    disk["format"], disk["backend"] = "raw", "phy"
    for key in ("script", "backend_domid", "backend_domname", "direct_io_safe"):
        disk.pop(key, None)
    if attachment.script:
        disk["script"] = attachment.script
