"""Everything that could refuse a migration, found before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk, Guest
from vmferry.api.hypervisor import Hypervisor
from vmferry.api.plugin import Capabilities, Grade
from vmferry.api.tracker import Tracker
from vmferry.engine.context import Registry
from vmferry.engine.settings import Settings
from vmferry.errors import VmferryError
from vmferry.wire.link import Link
from vmferry.wire.messages import MAX_EPOCH, MAX_RECONNECT, Accepted, Offer, Refused

__all__ = ["check_channels", "check_source", "make_offer", "offer_guest", "pick_tracker"]


def pick_tracker(disk: Disk, settings: Settings, registry: Registry) -> Tracker[Any] | None:
    """The tracker for a disk: the operator's choice or the hypervisor's; none if read-only."""
    if disk.read_only:
        return None
    return registry.tracker(settings.tracker or disk.tracker)


def make_offer(
    guest: Guest, settings: Settings, *, epoch: int = 0, check_only: bool = False
) -> Offer:
    """What the destination is asked; ``epoch`` is the highest known here."""
    sizes = tuple(max(settings.block_size, disk.sector_size) for disk in guest.disks)
    return Offer(
        guest=guest,
        block_sizes=sizes,
        check_only=check_only,
        epoch=min(epoch, MAX_EPOCH),
        reconnect=min(settings.reconnect, MAX_RECONNECT),
    )


async def check_source(
    guest: Guest, hypervisor: Hypervisor[Any], settings: Settings, registry: Registry
) -> list[Finding]:
    """Reasons at the source why the guest cannot leave, and facts worth showing."""
    findings = list(await hypervisor.check_departure(guest))
    findings += _emulated(f"hypervisor {hypervisor.name}", hypervisor.capabilities)
    findings += check_channels(hypervisor, settings.memory_channels)
    if not guest.disks:
        findings.append(Finding.warning("no-disks", f"guest {guest.name} has no local disk"))
    if settings.piece < settings.block_size:
        text = f"a piece of {settings.piece} bytes is smaller than a block ({settings.block_size})"
        findings.append(Finding.error("piece-size", text, "use a larger --piece"))
    for disk in guest.disks:
        findings += await _check_disk(disk, settings, registry)
    return findings


def check_channels(hypervisor: Hypervisor[Any], channels: int) -> list[Finding]:
    """Whether a hypervisor can send, or take, memory by so many further streams."""
    if not channels or hypervisor.capabilities.memory_channels is not Grade.NONE:
        return []
    text = f"hypervisor {hypervisor.name} moves memory by one stream, without {channels} channels"
    return [Finding.error("memory-channels", text, "leave --memory-channels out")]


async def _check_disk(disk: Disk, settings: Settings, registry: Registry) -> Sequence[Finding]:
    try:
        geometry = await registry.volume(disk.volume).probe(disk.location)
        tracker = pick_tracker(disk, settings, registry)
    except VmferryError as error:
        return [Finding.error("disk-source", f"disk {disk.name}: {error}")]
    findings = []
    if geometry.size != disk.size:
        text = f"disk {disk.name}: the guest sees {disk.size} bytes, {disk.location} has "
        findings.append(Finding.error("disk-size", f"{text}{geometry.size}"))
    if tracker is not None:
        findings += await tracker.check(disk, settings.block_size)
        findings += _emulated(f"tracker {tracker.name}", tracker.capabilities)
    return findings


def _emulated(who: str, capabilities: Capabilities) -> list[Finding]:
    """A capability that is missing is said aloud."""
    missing = [
        name for name in capabilities.__struct_fields__ if getattr(capabilities, name) is Grade.NONE
    ]
    if not missing:
        return []
    return [Finding.info("capabilities", f"{who} lacks: {', '.join(missing)}")]


async def offer_guest(link: Link, offer: Offer) -> Accepted | Refused:
    """Ask the destination; on ``Accepted`` it has reserved what the guest needs."""
    await link.send(offer)
    reply, _ = await link.receive(Accepted, Refused)
    assert isinstance(reply, Accepted | Refused)
    return reply
