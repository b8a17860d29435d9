"""Real QEMU guests that check themselves, moved by the real engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from qemu_hosts import MIB, QemuHosts

from vmferry.api import MoveLink
from vmferry_hypervisors.qemu.mirror import MIRROR
from vmferry_support.commands import run
from vmferry_support.qmp import Qmp

pytestmark = [pytest.mark.guest, pytest.mark.real, pytest.mark.timeout(900)]

SLOW = ("--bandwidth", "4MiB/s", "--compression", "none")


@contextlib.asynccontextmanager
async def two_hosts(size: int = 16 * MIB, **options: Any) -> AsyncIterator[QemuHosts]:
    with tempfile.TemporaryDirectory(prefix="vm-") as folder:
        hosts = QemuHosts(Path(folder), **options)
        try:
            await hosts.start(size)
            yield hosts
        finally:
            await hosts.close()


def processes_of(folder: Path) -> list[int]:
    """QEMUs that have something to do with a folder."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "name", "status"])
        if (process.info["name"] or "").startswith("qemu")
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(folder) in word for word in process.info["cmdline"] or ())
    ]


@pytest.mark.parametrize(
    ("source", "pool", "disks", "device", "block"),
    [
        ("raw", "raw", 1, "virtio", "4KiB"),
        ("qcow2", "qcow2", 2, "virtio", "64KiB"),
        ("raw", "qcow2", 1, "ide", "1MiB"),
        pytest.param("qcow2", "raw", 2, "ide", "4KiB", marks=pytest.mark.qemu),
    ],
)
async def test_a_guest_moves_while_it_writes(
    source: str, pool: str, disks: int, device: str, block: str
) -> None:
    async with two_hosts(format=source, disks=disks, device=device, write_rate=150) as hosts:
        summary = await hosts.moved("--block-size", block, "--threshold", "8MiB", volume=pool)
        assert summary["owner"] == "destination"
        await hosts.goes_on()
        assert len(processes_of(hosts.folder / "source")) == 0
        assert await hosts.left_in_qemu("destination") == []
        verdict = await hosts.judge_there()
        assert verdict.good, verdict
        assert verdict.checked == disks * (16 * MIB // 512 - 16)
        assert hosts.trial.record.reads > 0
        assert len(hosts.trial.record.switches) == 1


async def until_channels_carry(qmp: Qmp) -> None:
    said = None
    while not said:
        await asyncio.sleep(0.05)
        said = (await qmp.execute("query-migrate")).get("ram", {}).get("multifd-bytes")


async def test_memory_goes_by_several_channels() -> None:
    async with two_hosts(8 * MIB, write_rate=150, memory_fill=6 * MIB) as hosts:
        process = hosts.run(await asyncio.to_thread(hosts.serve), "--memory-channels", "3", *SLOW)
        await asyncio.to_thread(hosts.until, process, phase="push-memory")
        async with await Qmp.connect(str(hosts.trial.control("source"))) as qmp:
            async with asyncio.timeout(30):
                await until_channels_carry(qmp)
        code, errors = await hosts.ended(process)
        assert code == 0, errors
        await hosts.goes_on()
        assert await hosts.left_in_qemu("destination") == []
        verdict = await hosts.judge_there()
        assert verdict.good, verdict


@pytest.mark.qemu
async def test_a_command_that_is_killed_while_channels_carry_memory_is_taken_up() -> None:
    async with two_hosts(8 * MIB, write_rate=150, memory_fill=6 * MIB) as hosts:
        options = ("--memory-channels", "2", *SLOW)
        process = hosts.run(await asyncio.to_thread(hosts.serve), *options)
        begun = await asyncio.to_thread(hosts.until, process, phase="push-memory")
        await asyncio.sleep(1)
        process.kill()
        await hosts.ended(process)
        code, errors = await hosts.ended(hosts.resume(begun["job"]))
        assert code == 0, errors
        assert not list((hosts.folder / "source").glob(".*"))
        await hosts.goes_on()
        verdict = await hosts.judge_there()
        assert verdict.good, verdict


async def test_an_idle_guest_has_the_same_disk_there() -> None:
    async with two_hosts(format="qcow2", idle=True, prefill=0.5) as hosts:
        await hosts.moved(volume="qcow2")
        verdict = await hosts.judge_there()
        assert verdict.lost + verdict.wrong + verdict.bad_memory == 0, verdict
        (there,), (here,) = hosts.arrived, hosts.trial.disks.values()
        await run("qemu-img", "check", "-q", str(there))
        await run("qemu-img", "compare", "-q", str(here), str(there))


async def unshaped(port: int) -> int:
    return port


async def test_qemus_own_mirror_that_is_given_up_leaves_the_guest_alone() -> None:
    async with two_hosts(8 * MIB, write_rate=0, disks=2) as hosts:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await hosts.trial.move(MIRROR, MoveLink(MIB, unshaped))
        await hosts.goes_on()
        async with await Qmp.connect(str(hosts.trial.control("source"))) as qmp:
            assert await qmp.execute("query-block-jobs") == []
            names = {node["node-name"] for node in await qmp.execute("query-named-block-nodes")}
            assert not {name for name in names if name.endswith("-copy")}
        verdict = await hosts.judge_here()
        assert verdict.good, verdict


@pytest.mark.qemu
async def test_qemus_own_mirror_moves_every_disk_of_any_format() -> None:
    async with two_hosts(write_rate=150, format="qcow2", disks=2) as hosts:
        moved = await hosts.trial.move(MIRROR, MoveLink(0, unshaped))
        assert list(moved.phases) == ["prepare", "mirror", "migrate", "stop", "end"]
        await hosts.goes_on()
        verdict = await hosts.trial.verdict(moved.location)
        assert verdict.good, verdict
        assert verdict.checked == 2 * (16 * MIB // 512 - 16)


def test_the_demo_moves_a_qemu_guest(demo: Any) -> None:
    result = demo("--hypervisor", "qemu", "--disk-size", "32MiB", "--before", "0.2")
    assert result.code == 0, result.errors
    assert result.verdict["acknowledged"] > 0
    assert result.verdict["bad_memory"] == 0


async def test_a_guest_that_writes_faster_than_the_link_moves_and_reads_on_demand() -> None:
    async with two_hosts(8 * MIB, write_rate=0, part_ratio=0.7, read_ratio=0.4) as hosts:
        summary = await hosts.moved(*SLOW, "--block-size", "64KiB", "--max-rounds", "2")
        assert summary["pending"] > MIB
        assert summary["on_demand"] > 0
        verdict = await hosts.judge_there()
        assert verdict.good, verdict


@pytest.mark.parametrize(
    ("phase", "channels"),
    [
        ("push-disk", "0"),
        pytest.param("push-memory", "0", marks=pytest.mark.qemu),
        ("push-memory", "2"),
    ],
)
async def test_an_interrupted_migration_leaves_the_guest_alone(phase: str, channels: str) -> None:
    async with two_hosts(write_rate=150, format="qcow2") as hosts:
        address = await asyncio.to_thread(hosts.serve)
        process = hosts.run(address, "--memory-channels", channels, *SLOW)
        await asyncio.to_thread(hosts.until, process, phase=phase)
        process.send_signal(signal.SIGINT)
        code, errors = await hosts.ended(process)
        assert code == 130, errors
        await hosts.goes_on()
        assert await hosts.left_in_qemu() == []
        await hosts.until_true(lambda: not processes_of(hosts.folder / "destination"))
        verdict = await hosts.judge_here()
        assert verdict.good, verdict


@pytest.mark.qemu
async def test_a_guest_waits_for_an_agent_that_is_killed_in_pull() -> None:
    async with two_hosts(write_rate=0) as hosts:
        address = await asyncio.to_thread(hosts.serve)
        process = hosts.run(address, *SLOW, "--max-rounds", "1", "--threshold", "0")
        await asyncio.to_thread(hosts.until, process, phase="pull")
        assert hosts.agent is not None
        hosts.agent.kill()
        record = hosts.trial.record
        ticks = await _ticks_without_operations(hosts)
        assert ticks > 100, "the guest does not live"
        assert record.errors == 0, "the guest was given errors"
        assert len(processes_of(hosts.folder / "destination")) == 1


async def test_pull_goes_on_with_an_agent_that_is_started_anew() -> None:
    async with two_hosts(write_rate=0) as hosts:
        address = await asyncio.to_thread(hosts.serve)
        process = hosts.run(address, *SLOW, "--max-rounds", "1", "--threshold", "0")
        await asyncio.to_thread(hosts.until, process, phase="pull")
        assert hosts.agent is not None
        hosts.agent.kill()
        await asyncio.to_thread(hosts.agent.wait)
        assert await asyncio.to_thread(hosts.serve, "raw", address) == address
        code, errors = await hosts.ended(process)
        assert code == 0, errors
        await hosts.goes_on()
        verdict = await hosts.judge_there()
        assert verdict.good, verdict
        assert hosts.trial.record.errors == 0


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_what_is_interrupted_in_pull_is_taken_up(form: str) -> None:
    """The source's QEMU serves its disks until the destination has everything."""
    async with two_hosts(write_rate=0, format=form) as hosts:
        address = await asyncio.to_thread(hosts.serve)
        process = hosts.run(address, *SLOW, "--max-rounds", "1", "--threshold", "0")
        job = (await asyncio.to_thread(hosts.until, process, phase="pull"))["job"]
        await hosts.until_true(lambda: hosts.trial.record.switches)
        for _ in range(2):  # the first one is told that the guest has gone
            process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.5)
        code, errors = await hosts.ended(process)
        assert code == 5, errors
        assert processes_of(hosts.folder / "source")
        code, errors = await hosts.ended(hosts.resume(job))
        assert code == 0, errors
        assert not processes_of(hosts.folder / "source")
        await hosts.goes_on()
        verdict = await hosts.judge_there()
        assert verdict.good, verdict


async def _ticks_without_operations(hosts: QemuHosts) -> int:
    """Timer ticks of the guest in which no request of its was answered."""
    record, ticks, done = hosts.trial.record, 0, -1
    async with asyncio.timeout(300):
        while ticks <= 100:
            await asyncio.sleep(0.1)
            await asyncio.to_thread(record.update)
            if record.writes + record.reads != done:
                done, start = record.writes + record.reads, record.ticks
            ticks = record.ticks - start
    return ticks


async def test_a_qemu_that_is_killed_before_the_switch_is_told() -> None:
    async with two_hosts(write_rate=150) as hosts:
        process = hosts.run(await asyncio.to_thread(hosts.serve), *SLOW)
        await asyncio.to_thread(hosts.until, process, phase="push-disk")
        (pid,) = processes_of(hosts.folder / "source")
        os.kill(pid, signal.SIGKILL)
        code, errors = await hosts.ended(process)
        assert code not in (0, None)
        assert "QEMU" in errors
        await hosts.until_true(lambda: not processes_of(hosts.folder / "destination"))
        assert not any(path.exists() for path in hosts.arrived)
        verdict = await hosts.judge_here()
        assert verdict.good, verdict


@pytest.mark.parametrize(
    "phase", [pytest.param("push-disk", marks=pytest.mark.qemu), "push-memory", "pull"]
)
async def test_a_guest_that_reboots_on_the_way_arrives(phase: str) -> None:
    async with two_hosts(write_rate=150) as hosts:
        process = hosts.run(await asyncio.to_thread(hosts.serve), *SLOW, "--max-rounds", "2")
        await asyncio.to_thread(hosts.until, process, phase=phase)
        if phase == "pull":
            await hosts.until_true(lambda: hosts.trial.record.switches)
        await hosts.trial.reboot()
        code, errors = await hosts.ended(process)
        assert code == 0, errors
        await hosts.until_true(lambda: hosts.trial.record.boots == 2)
        await hosts.goes_on()
        verdict = await hosts.judge_there()
        assert verdict.good, verdict


async def test_a_guest_that_powers_off_in_push_stays() -> None:
    async with two_hosts(write_rate=150) as hosts:
        process = hosts.run(await asyncio.to_thread(hosts.serve), *SLOW)
        await asyncio.to_thread(hosts.until, process, phase="push-disk")
        await hosts.trial.power_off()
        code, errors = await hosts.ended(process)
        assert code not in (0, None)
        assert "QEMU" in errors
        await hosts.until_true(lambda: not processes_of(hosts.folder))
        verdict = await hosts.judge_here()
        assert verdict.good, verdict


async def test_a_guest_that_powers_off_in_pull_has_arrived() -> None:
    async with two_hosts(write_rate=0) as hosts:
        address = await asyncio.to_thread(hosts.serve)
        process = hosts.run(address, *SLOW, "--max-rounds", "1", "--threshold", "0")
        await asyncio.to_thread(hosts.until, process, phase="pull")
        await hosts.until_true(lambda: hosts.trial.record.switches)
        await hosts.trial.power_off()
        code, errors = await hosts.ended(process)
        assert code == 0, errors
        await hosts.until_true(lambda: not processes_of(hosts.folder))
        verdict = await hosts.judge_there()
        assert verdict.good, verdict
