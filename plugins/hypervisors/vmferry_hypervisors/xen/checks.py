"""What is looked at on either host before anything is changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vmferry.api.findings import Finding
from vmferry.api.guest import Guest
from vmferry.errors import InputError, VmferryError
from vmferry_hypervisors.xen.config import DomainConfig, decode_config, parse_bridges
from vmferry_hypervisors.xen.incoming import domain_names
from vmferry_hypervisors.xen.leaving import AWAY, INCOMING
from vmferry_hypervisors.xen.leftovers import find_leftovers
from vmferry_hypervisors.xen.memory import plan_memory
from vmferry_hypervisors.xen.modules import module_findings
from vmferry_hypervisors.xen.options import XenOptions
from vmferry_hypervisors.xen.qdisk import qdisk_findings
from vmferry_hypervisors.xen.xenstore import XenStore
from vmferry_hypervisors.xen.xl import HostInfo, list_domains, parse_info, xl

__all__ = ["arrival_findings", "departure_findings", "host_findings", "type_findings"]

_PROGRAMS = {
    "xl": "install xen-utils",
    "dmsetup": "install dmsetup",
    "losetup": "install util-linux (Debian: mount)",
}
_SOURCE = ("xl",)


def host_findings(programs: Sequence[str]) -> list[Finding]:
    """Whether this is dom0 of Xen, with rights and programs; if not, nothing else is asked."""
    found = []
    if not Path("/proc/xen").exists() and not Path("/sys/hypervisor/type").exists():
        text = "this host does not run Xen"
        found.append(Finding.error("xen-missing", text, "boot its Xen entry; see xl(1)"))
    elif os.geteuid():
        found.append(Finding.error("rights", "Xen is driven by root alone", "run it as root"))
    for program in programs:
        if shutil.which(program) is None:
            text = f"the program {program} is not installed"
            found.append(Finding.error("program-missing", text, _PROGRAMS[program]))
    return found


def type_findings(config: DomainConfig, host: HostInfo) -> list[Finding]:
    """Whether a guest of its type can live-migrate on a host of these abilities at all."""
    found = config.findings()
    if config.type == "pvh" and not {"hap", "shadow"} & host.abilities:
        text = f"guest {config.name} is of type pvh, and Xen has neither hap nor shadow paging"
        remedy = "switch nested paging (EPT, NPT) on in the firmware"
        found.append(Finding.error("guest-type", text, remedy))
    return found


def _disk_findings(guest: Guest) -> list[Finding]:
    found = []
    for disk in guest.disks:
        kind = disk.facts.get("kind", "unknown")
        if kind == "qdisk":
            found += qdisk_findings(disk)
        elif kind != "vbd" or not disk.facts.get("devno"):
            text = f"disk {disk.name} ({disk.location}) has a backend of kind {kind}, neither "
            remedy = "give it format=raw and backendtype=phy or qdisk in its configuration: copy "
            remedy += "a read-only image or eject it"
            found.append(Finding.error("disk-backend", text + "blkback nor QEMU", remedy))
    return found


async def departure_findings(guest: Guest, options: XenOptions) -> list[Finding]:
    """Reasons why the guest cannot leave."""
    if found := host_findings(_SOURCE):
        return found
    try:
        config, host = decode_config(guest.config), parse_info(await xl("info"))
        found += type_findings(config, host) + _disk_findings(guest)
        if sorted(config.disks) != sorted(disk.name for disk in guest.disks):
            text = f"guest {guest.name} has disks {sorted(config.disks)} by its configuration, "
            text += f"{sorted(disk.name for disk in guest.disks)} by xenstore"
            found.append(Finding.error("disk-unknown", text, "attach them with xl block-attach"))
        async with XenStore(options.xenstore) as store:
            names = (await domain_names(store)).values()
    except VmferryError as error:
        return [*found, Finding.error("xen-failed", str(error))]
    if guest.name not in names:
        found.append(Finding.error("guest-gone", f"guest {guest.name} does not run here"))
    if guest.name + AWAY in names:
        text = f"a domain {guest.name}{AWAY} is left of an earlier migration"
        remedy = f"once the guest is known to run elsewhere: xl destroy {guest.name}{AWAY}"
        found.append(Finding.error("leftover-domain", text, remedy))
    return found


async def arrival_findings(guest: Guest, options: XenOptions, script: str) -> list[Finding]:
    """Reasons why the guest, which is untrusted, cannot come here."""
    if found := host_findings(tuple(_PROGRAMS)):
        return found
    try:
        config = decode_config(guest.config)
        bridges = parse_bridges(options.bridges)
        host = parse_info(await xl("info"))
        found += _match_findings(guest, config) + type_findings(config, host)
        found += _version_findings(guest, host)
        found += await _name_findings(options.name or config.name, options)
        found += await _memory_findings(config, host, options)
        found += _bridge_findings(config, bridges)
        found += await module_findings()
        found += await _leftover_findings(options)
    except VmferryError as error:
        code = "option" if isinstance(error, InputError) else "xen-failed"
        return [*found, Finding.error(code, str(error))]
    if options.hotplug == "own" and not os.access(script, os.X_OK):
        text = f"the hotplug script {script} cannot be run"
        found.append(Finding.error("script", text, f"chmod +x {script}, or set hotplug=xen"))
    return found


def _match_findings(guest: Guest, config: DomainConfig) -> list[Finding]:
    """Whether the description and the configuration are of one guest."""
    disks = sorted(disk.name for disk in guest.disks)
    same = (config.name, config.uuid, config.memory, sorted(config.disks))
    if guest.hypervisor == "xen" and same == (guest.name, guest.uuid, guest.memory, disks):
        return []
    text = f"guest {guest.name}: its description and its configuration do not agree"
    return [Finding.error("config-mismatch", text, "use the same version of vmferry on both hosts")]


def _version_findings(guest: Guest, host: HostInfo) -> list[Finding]:
    try:
        major, minor = (int(part) for part in guest.facts["xen"].split("."))
    except (KeyError, ValueError):
        return [Finding.error("xen-version", f"guest {guest.name} does not tell its Xen's version")]
    here = ".".join(map(str, host.version))
    if (major, minor) > host.version:
        text = f"guest {guest.name} comes from Xen {major}.{minor}; this is {here}"
        remedy = "upgrade this host: Xen migrates to the same or a later version only"
        return [Finding.error("xen-version", text, remedy)]
    return []


async def _name_findings(name: str, options: XenOptions) -> list[Finding]:
    async with XenStore(options.xenstore) as store:
        names = (await domain_names(store)).values()
    found = []
    if name in names:
        text = f"a guest named {name} exists on this host"
        found.append(Finding.error("name-taken", text, "stop or rename it, or set option name"))
    if name + INCOMING in names:
        text = f"a domain {name}{INCOMING} is being received, or is left of an earlier migration"
        remedy = f"if no migration is under way: xl destroy {name}{INCOMING}"
        found.append(Finding.error("leftover-domain", text, remedy))
    return found


async def _memory_findings(
    config: DomainConfig, host: HostInfo, options: XenOptions
) -> list[Finding]:
    plan = plan_memory(config.needed_memory, host, await list_domains(), options)
    if plan.short:
        text = f"not enough memory for guest {config.name}: {plan.text}"
        remedy = "stop or shrink a guest, or allow ballooning: options min_dom0_memory, "
        return [Finding.error("memory-short", text, remedy + "min_guest_memory")]
    if plan.balloons:
        return [Finding.info("memory-freed", f"memory for guest {config.name}: {plan.text}")]
    return []


def _bridge_findings(config: DomainConfig, bridges: dict[str, str]) -> list[Finding]:
    found = []
    for bridge in config.bridges:
        here = bridges.get(bridge, bridge)
        if "/" in here or not Path(f"/sys/class/net/{here}").exists():
            text = f"guest {config.name} is on bridge {bridge}; there is no {here} here"
            remedy = f"make it, or name another: option bridges={bridge}=NAME"
            found.append(Finding.error("bridge-missing", text, remedy))
    return found


async def _leftover_findings(options: XenOptions) -> list[Finding]:
    left = await find_leftovers(options.xenstore)
    if not left:
        return []
    text = f"left of an earlier migration: {', '.join(each.text for each in left)}"
    return [
        Finding.warning("leftovers", text, "remove them with `migrate cleanup --hypervisor xen`")
    ]
