"""Whole migrations between two real Xen hosts; the guest's own record is the judge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmferry_lab import Lab
from vmferry_lab.ferry import Ferry
from vmferry_lab.leftovers import one_migration

MIB = 1 << 20


@pytest.fixture
def ferry(lab: Lab) -> Iterator[Ferry]:
    with one_migration(lab, "xenbr0"):
        made = Ferry(*lab.xen_hosts())
        yield made
        made.close()


def judge(ferry: Ferry) -> None:
    """The guest runs at B, writes there, and misses nothing of what it wrote anywhere."""
    assert ferry.name not in ferry.here.running()
    ferry.writes_on(ferry.destination)
    verdict = ferry.there.verdict(ferry.name)
    assert verdict.good, verdict
    assert verdict.sectors > 0


def stays(ferry: Ferry) -> None:
    """The guest runs on at A, misses nothing, and nothing of the attempt is left anywhere."""
    ferry.writes_on(ferry.source)
    verdict = ferry.here.verdict(ferry.name)
    assert verdict.good, verdict
    ferry.wait(lambda: ferry.left(ferry.destination) == [], "the destination is clean")
    assert ferry.left(ferry.source) == []


@pytest.mark.essential
@pytest.mark.parametrize("tracker", ["blkback", "dm-era"])
def test_a_writing_guest_moves_and_misses_nothing(ferry: Ferry, tracker: str) -> None:
    ferry.serve("--once")
    ferry.guest(rate=10, flush=20, prefill=8)
    ferry.run(tracker)
    assert ferry.code() == 0, ferry.log(ferry.source)
    assert ferry.code(ferry.destination) == 0
    judge(ferry)
    assert ferry.left(ferry.source) == []
    mappings = ferry.left(ferry.destination)
    assert len(mappings) == 1, "more than the plain mapping is left"
    table = ferry.destination.run(["dmsetup", "table", mappings[0]])
    assert table.split() == ["0", str(32 * MIB // 512), "linear", *table.split()[3:5]]


def test_a_disk_that_qemu_serves_moves_to_blkback_and_misses_nothing(ferry: Ferry) -> None:
    """Tracked by that QEMU's own dirty bitmaps; partial writes, discards, flushes hit PULL."""
    if "qemu" not in ferry.source.run("ls /usr/lib/xen-*/bin /usr/libexec 2>/dev/null || true"):
        pytest.skip("the laboratory is not up with QEMU: python -m vmferry_lab up --with qdisk")
    ferry.serve("--once")
    ferry.guest(backend="qdisk", rate=10, partial=3, discard=10, flush=10, prefill=8)
    ferry.run("qcow2", "--bandwidth", "4MiB/s")
    assert ferry.code() == 0, ferry.log(ferry.source)
    assert ferry.code(ferry.destination) == 0
    judge(ferry)
    assert ferry.left(ferry.source) == []
    assert len(ferry.left(ferry.destination)) == 1


def test_an_interruption_before_the_commit_leaves_the_guest_at_the_source(ferry: Ferry) -> None:
    ferry.serve("--once")
    ferry.guest(rate=10, prefill=8)
    ferry.run("blkback")
    ferry.reach("push-memory")
    ferry.interrupt()
    assert ferry.code() in (130, 4)
    stays(ferry)


def test_a_relay_that_is_killed_leaves_the_guest_at_the_source(ferry: Ferry) -> None:
    ferry.serve("--once")
    ferry.guest(rate=10, prefill=8)
    ferry.run("blkback")
    ferry.reach("push-memory")
    ferry.kill_relay()
    assert ferry.code() == 4
    stays(ferry)


def test_two_disks_and_a_network_card_move_under_writes_to_pending_blocks(ferry: Ferry) -> None:
    """PULL is slow and everything pending: whole and partial writes, discards, flushes hit it."""
    ferry.serve("--once")
    ferry.guest(disks=2, network=True, rate=30, partial=3, discard=10, flush=10, prefill=8)
    ferry.run("blkback", "--bandwidth", "4MiB/s")
    ferry.reach("pull")
    ferry.writes_on(ferry.destination)
    assert ferry.code() == 0, ferry.log(ferry.source)
    judge(ferry)
    assert len(ferry.left(ferry.destination)) == 2
    report = ferry.there.report(ferry.name)
    assert min(report.discards, report.flushes) > 0
    assert "vif" in ferry.destination.run("ls /sys/class/net/xenbr0/brif")


def test_an_agent_that_is_killed_in_pull_and_started_again_ends_it(ferry: Ferry) -> None:
    ferry.serve()
    ferry.guest(rate=20, partial=3, prefill=16)
    ferry.run("blkback", "--bandwidth", "4MiB/s", "--stall-timeout", "0")
    ferry.stop_source_at("pull")  # so that much is left to pull
    ferry.kill_agent()
    assert ferry.name in ferry.there.running()
    ferry.serve()
    ferry.continue_source()
    assert ferry.code() == 0, ferry.log(ferry.source)
    assert "reconnected" in ferry.log(ferry.source)
    judge(ferry)
    assert len(ferry.left(ferry.destination)) == 1


def test_a_destination_without_memory_refuses_and_one_that_may_frees_some(ferry: Ferry) -> None:
    ferry.guest(rate=5, prefill=1)
    free = int(ferry.destination.run("xl info free_memory"))
    spare = f"--hypervisor-opt spare_memory={free - 100}MiB"
    ferry.serve(spare)
    ferry.run("blkback")
    assert ferry.code() == 3
    assert "memory-short" in ferry.log(ferry.source)
    stays(ferry)
    ferry.kill_agent("INT")
    ferry.serve(spare, "--hypervisor-opt min_dom0_memory=700MiB")
    try:
        ferry.run("blkback")
        assert ferry.code() == 0, ferry.log(ferry.source)
        judge(ferry)
        assert int(ferry.destination.run("xl list 0 | awk 'NR == 2 {print $3}'")) < 1024
    finally:
        ferry.destination.run("xl mem-set 0 1024m")
