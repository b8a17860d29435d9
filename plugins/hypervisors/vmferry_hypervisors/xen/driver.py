"""The ``xen`` hypervisor plugin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmferry.api.findings import Finding
from vmferry.api.guest import ArrivingDisk, Guest
from vmferry.api.hypervisor import ByteStream, Hypervisor, HypervisorCapabilities
from vmferry.api.plugin import Grade
from vmferry.errors import ConnectionLost, GuestNotFound, HypervisorError
from vmferry_hypervisors.xen.arrival import XenArrival
from vmferry_hypervisors.xen.checks import arrival_findings, departure_findings
from vmferry_hypervisors.xen.config import DomainConfig, decode_config, encode_config
from vmferry_hypervisors.xen.departure import XenDeparture
from vmferry_hypervisors.xen.describe import describe_disks
from vmferry_hypervisors.xen.incoming import domain_names
from vmferry_hypervisors.xen.leaving import AWAY, INCOMING, domain_uuid
from vmferry_hypervisors.xen.leftovers import find_leftovers, remove_leftovers
from vmferry_hypervisors.xen.options import XenOptions
from vmferry_hypervisors.xen.recovery import RecoveredDeparture
from vmferry_hypervisors.xen.xenstore import XenStore
from vmferry_hypervisors.xen.xl import Listed, find_domain, parse_info, xl

__all__ = ["XenHypervisor"]

SCRIPT = Path(__file__).with_name("vmferry-block")


class _NoStream:
    """The stream of a guest that has arrived long since."""

    channels = ()

    async def write(self, data: bytes | memoryview) -> None:
        raise ConnectionLost("the memory stream of this migration has ended")

    async def read(self, limit: int = 1 << 20) -> bytes:
        return b""

    async def write_eof(self) -> None:
        return


class XenHypervisor(Hypervisor[XenOptions]):
    """PVH guests of the Xen hypervisor, with their disks below blkback.

    Pre-copy, suspend and state are xl's own, of which this plugin is the transport.
    """

    api_version = 1
    name = "xen"
    summary = "guests of the Xen hypervisor, by xl: PVH, disks below blkback"
    options_type = XenOptions
    capabilities = HypervisorCapabilities(
        free_memory=Grade.NATIVE, reattach=Grade.NATIVE, recover=Grade.NATIVE
    )

    async def guests(self) -> Sequence[str]:
        """Names of the domains but dom0 and those that a migration is making or leaving."""
        async with XenStore(self.options.xenstore) as store:
            names = await domain_names(store)
        return sorted(name for name in names.values() if not name.endswith((AWAY, INCOMING)))

    async def _find(self, name: str) -> Listed:
        names = await self.guests()
        found = await find_domain(name) if name in names else None
        if found is None:
            raise GuestNotFound(name, names)
        return found

    async def describe(self, name: str) -> Guest:
        """Describe a guest from its configuration and the backends of its disks."""
        domid, domain = await self._find(name)
        config = DomainConfig(domain)
        async with XenStore(self.options.xenstore) as store:
            disks = await describe_disks(store, domid)
        host = parse_info(await xl("info"))
        return Guest(
            name=name,
            uuid=config.uuid,
            hypervisor=self.name,
            memory=config.memory,
            vcpus=config.vcpus,
            disks=disks,
            facts={"xen": ".".join(map(str, host.version)), "type": config.type},
            config=encode_config(domain),
        )

    async def check_departure(self, guest: Guest) -> Sequence[Finding]:
        """Type of guest, features of the host, kind of each disk's backend, leftovers."""
        return await departure_findings(guest, self.options)

    async def check_arrival(self, guest: Guest) -> Sequence[Finding]:
        """Versions, name, memory, programs, kernel modules, bridges, leftovers."""
        return await arrival_findings(guest, self.options, str(SCRIPT))

    async def depart(self, guest: Guest, stream: ByteStream) -> XenDeparture:
        """Start ``xl migrate``."""
        domid, domain = await self._find(guest.name)
        if (uuid := str(domain["c_info"].get("uuid", ""))) != guest.uuid:
            raise HypervisorError(f"guest {guest.name} is another now: {uuid}, not {guest.uuid}")
        devices = tuple(disk.facts["dm"] for disk in guest.disks if disk.facts.get("ours"))
        departure = XenDeparture(domid, DomainConfig(domain), stream, self.options, devices)
        await departure.start()
        return departure

    async def arrive(
        self, guest: Guest, disks: Sequence[ArrivingDisk], stream: ByteStream
    ) -> XenArrival:
        """Free memory, make the disks' devices, start ``xl migrate-receive``."""
        config = decode_config(guest.config)
        for each in disks:
            if each.volume != "raw":
                raise HypervisorError(
                    f"disk {each.disk.name}: a Xen guest cannot use a local volume of type "
                    f"{each.volume!r}; use raw"
                )
        script = str(SCRIPT) if self.options.hotplug == "own" else ""
        name = self.options.name or config.name
        arrival = XenArrival(config, name, disks, stream, self.options, script)
        await arrival.start()
        return arrival

    async def reattach(self, guest: Guest, disks: Sequence[ArrivingDisk]) -> XenArrival:
        """Give the devices of the disks a new connection to the exports."""
        config = decode_config(guest.config)
        name = self.options.name or config.name
        arrival = XenArrival(config, name, disks, _NoStream(), self.options)
        await arrival.take_up()
        return arrival

    async def recover(self, guest: Guest) -> RecoveredDeparture:
        """Find the domain, by its uuid, and what is left of xl."""
        async with XenStore(self.options.xenstore) as store:
            found = [
                domid
                for domid, name in (await domain_names(store)).items()
                if name in (guest.name, guest.name + AWAY)
                and await domain_uuid(store, domid) == guest.uuid
            ]
        devices = [disk.facts["dm"] for disk in guest.disks if disk.facts.get("ours")]
        config = decode_config(guest.config)
        return RecoveredDeparture(found[0] if found else None, config, self.options, devices)

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[str]:
        """Remove half-built domains, and mappings and NBD devices of ours that nobody uses."""
        if dry_run:
            found = await find_leftovers(self.options.xenstore)
            return [each.text if each.safe else f"{each.text} (in use: left)" for each in found]
        return [each.text for each in await remove_leftovers(self.options.xenstore)]
