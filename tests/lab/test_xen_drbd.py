"""Unmodified xl over DRBD, as experiments compare with it; the guest's own record is the judge."""

from __future__ import annotations

import secrets

import pytest

from vmferry.experiments.executors import perform
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import RunSpec
from vmferry.experiments.workloads import WORKLOADS
from vmferry_lab import Host, Lab

MIB = 1 << 20


@pytest.fixture(autouse=True)
def drbd(lab: Lab) -> None:
    if "drbd" not in lab.flavours:
        pytest.skip("the laboratory is not up with DRBD: python -m vmferry_lab up --with drbd")


def left(host: Host) -> list[str]:
    """Devices and files of disks, guests' and DRBD's."""
    found = host.run("ls /sys/block /dev/mapper; cd /srv/disks; ls | grep img || true").split()
    return [each for each in found if each.startswith(("drbd", "ferry-", "mirror-"))]


async def test_a_writing_guest_moves_over_drbd_and_misses_nothing(
    lab: Lab, hosta: Host, hostb: Host
) -> None:
    size = 32 * MIB
    parameters = Parameters(hypervisor="xen", method="xl-drbd", workload="web", disk_size=size)
    spec = RunSpec(
        parameters=parameters,
        load=WORKLOADS["web"],
        lab={"folder": str(lab.root)},
        before=5.0,
        after=5.0,
        timeout=1200.0,
    )
    result = await perform(spec)
    print(result.figures, result.phases, result.events)
    assert result.outcome == "done", result.error
    assert (result.figures["lost"], result.figures["bad_reads"]) == (0, 0)
    assert result.figures["checked"] == size // 512
    copied, parted = (event.facts["sent"] for event in result.events)
    assert size <= copied < parted, "the guest wrote nothing while xl moved it"
    assert result.figures["sent"] > parted
    assert left(hosta) == left(hostb) == []


def test_a_mirror_can_be_removed_while_it_is_copied_and_once_more(
    lab: Lab, hosta: Host, hostb: Host
) -> None:
    name = f"mirror-{secrets.token_hex(3)}"
    try:
        lab.mirror_disk(name, 64 * MIB).connect()
    finally:
        lab.unmirror_disk(name)
    assert left(hosta) == left(hostb) == []
    lab.unmirror_disk(name)
