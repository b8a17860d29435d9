"""Who gives memory for an arriving guest, within the limits that were set."""

from vmferry.units import MIB
from vmferry_hypervisors.xen.memory import plan_memory
from vmferry_hypervisors.xen.options import XenOptions
from vmferry_hypervisors.xen.xl import DomainRow, HostInfo

ROWS = (
    DomainRow("Domain-0", 0, 1024, 1, "r-----"),
    DomainRow("small", 3, 256, 1, "-b----"),
    DomainRow("large", 5, 512, 1, "-b----"),
)


def host(free: int) -> HostInfo:
    return HostInfo((4, 17), free * MIB, 4096 * MIB, frozenset())


def plan(needed: int, free: int, **limits: int) -> dict[str, int]:
    options = XenOptions(spare_memory=0, **{name: size * MIB for name, size in limits.items()})
    made = plan_memory(needed * MIB, host(free), ROWS, options)
    return {each.name: each.after for each in made.balloons} | {"short": made.short // MIB}


def test_nothing_is_taken_when_enough_is_free() -> None:
    assert plan(100, 100, min_dom0_memory=1, min_guest_memory=1) == {"short": 0}


def test_nobody_gives_without_leave() -> None:
    assert plan(100, 60) == {"short": 40}


def test_dom0_gives_first_and_no_more_than_needed() -> None:
    assert plan(100, 60, min_dom0_memory=512, min_guest_memory=64) == {"Domain-0": 984, "short": 0}


def test_then_the_largest_guest_down_to_the_limit() -> None:
    limits = {"min_dom0_memory": 1000, "min_guest_memory": 128}
    assert plan(500, 60, **limits) == {"Domain-0": 1000, "large": 128, "small": 224, "short": 0}


def test_what_is_still_missing_is_told() -> None:
    assert plan(2000, 0, min_dom0_memory=1000) == {"Domain-0": 1000, "short": 1976}


def test_some_is_spared_for_xen() -> None:
    options = XenOptions(spare_memory=8 * MIB)
    assert plan_memory(100 * MIB, host(100), ROWS, options).short == 8 * MIB


def test_a_few_mebibytes_that_are_missing_are_seen_in_the_text() -> None:
    options = XenOptions(spare_memory=1900 * MIB, min_dom0_memory=1020 * MIB)
    text = plan_memory(131 * MIB, host(2000), ROWS, options).text
    assert "2031 MiB needed, what is to stay free included, 2000 MiB free" in text
    assert "ballooning Domain-0 from 1024 to 1020 MiB" in text
    assert "27 MiB short" in text
