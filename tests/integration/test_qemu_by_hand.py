"""QEMUs that an operator started: with -drive, with media, waiting with -incoming defer."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from vmferry.api.guest import ArrivingDisk
from vmferry.errors import GuestNotFound, HypervisorError
from vmferry.testing.streams import stream_pair
from vmferry_hypervisors.qemu.driver import QemuHypervisor
from vmferry_hypervisors.qemu.launch import StartedQemu, start_qemu
from vmferry_hypervisors.qemu.options import QemuOptions
from vmferry_support.qmp import Qmp

sys.path.insert(0, str(Path(__file__).parent))
from qemu_hosts import MIB, QemuHosts

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
    ),
]

BASE = ["qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-nodefaults", "-no-user-config"]
BASE += ["-display", "none"]
VOID = ["-blockdev", "null-co,node-name=nothing,size=16777216"]
TOP = [*VOID, "-blockdev", "raw,node-name=top,file=nothing"]


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vm-") as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def qemu(folder: Path, name: str, *words: str) -> AsyncIterator[Qmp]:
    """A QEMU whose monitor is FOLDER/NAME.qmp."""
    started: StartedQemu = await start_qemu([*BASE, *words], folder / f"{name}.qmp")
    try:
        async with await started.connected(60) as qmp:
            yield qmp
    finally:
        await started.kill()


def driver(folder: Path, **options: Any) -> QemuHypervisor:
    return QemuHypervisor(QemuOptions(sockets=str(folder), **options))


async def codes(folder: Path, name: str) -> set[str]:
    """What speaks against leaving, whatever QEMU it is."""
    source = driver(folder)
    found = await source.check_departure(await source.describe(name))
    return {each.code for each in found} - {"qemu-loses-memory"}


async def test_drives_of_any_kind_are_described(folder: Path) -> None:
    for name, size in (("a", 3 * MIB), ("b", 2 * MIB), ("cd", MIB), ("flash", 256 << 10)):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    words = ["-drive", f"file={folder}/a,if=virtio,format=raw", "-name", "by-hand"]
    words += ["-blockdev", f"file,node-name=b,filename={folder}/b,read-only=on"]
    words += [
        "-device",
        "virtio-blk-pci,id=second,drive=b,logical_block_size=4096,physical_block_size=4096",
    ]
    words += [
        "-device",
        "ide-cd,bus=ide.0,drive=cd",
        "-drive",
        f"if=none,id=cd,format=raw,file={folder}/cd",
    ]
    words += ["-drive", f"if=pflash,format=raw,file={folder}/flash"]
    async with qemu(folder, "other", *words):
        guest = await driver(folder).describe("by-hand")
        disks = {disk.name: disk for disk in guest.disks}
        assert set(disks) == {"virtio0", "second", "cd"}
        assert disks["virtio0"].size == 3 * MIB
        assert disks["virtio0"].facts["node"].startswith("#block")
        assert "%23block" in disks["virtio0"].location
        assert (disks["second"].sector_size, disks["second"].read_only) == (4096, True)
        assert (guest.memory, guest.vcpus) == (16 * MIB, 1)
        assert guest.facts["machine"].startswith("pc-i440fx-")
        assert await codes(folder, "by-hand") == {"medium", "firmware"}


async def test_a_guest_without_a_name_has_that_of_its_socket(folder: Path) -> None:
    async with qemu(folder, "nameless", *TOP, "-device", "virtio-blk-pci,drive=top"):
        assert list(await driver(folder).guests()) == ["nameless"]
        with pytest.raises(GuestNotFound, match="nameless"):
            await driver(folder).describe("other")


async def test_what_speaks_against_leaving_is_found(folder: Path) -> None:
    words = [*TOP, "-device", "virtio-blk-pci,drive=top", "-blockdev"]
    async with qemu(folder, "g", *words, "null-co,node-name=copy,size=16777216") as qmp:
        assert await codes(folder, "g") == set()
        await qmp.execute("stop")
        assert await codes(folder, "g") == {"guest-stopped"}
        await qmp.execute("cont")
        await qmp.execute(
            "blockdev-mirror", job_id="mine", device="top", target="copy", sync="full", speed=1
        )
        assert await codes(folder, "g") == {"guest-job"}
        await qmp.execute(
            "migrate-set-capabilities", capabilities=[{"capability": "x-colo", "state": True}]
        )
        assert "qemu-setting" in await codes(folder, "g")


@pytest.mark.parametrize("channels", [0, 2])
async def test_channels_are_as_asked_for_and_then_as_they_were(folder: Path, channels: int) -> None:
    async with qemu(folder, "g", *TOP, "-device", "virtio-blk-pci,drive=top") as qmp:

        async def multifd() -> tuple[bool, int]:
            said = await qmp.execute("query-migrate-capabilities")
            on = {each["capability"] for each in said if each["state"]}
            parameters = await qmp.execute("query-migrate-parameters")
            return "multifd" in on, parameters["multifd-channels"]

        state = [{"capability": "multifd", "state": not channels}]
        await qmp.execute("migrate-set-capabilities", capabilities=state)
        await qmp.execute("migrate-set-parameters", {"multifd-channels": 5})
        source = driver(folder)
        near, _ = stream_pair(channels=channels)
        departure = await source.depart(await source.describe("g"), near)
        assert await multifd() == ((True, 2) if channels else (False, 5))
        await departure.resume()
        assert await multifd() == (not channels, 5)
        assert not list(folder.glob(".*-memory"))


async def test_a_guest_that_is_taken_up_keeps_the_events_that_libvirt_wants(folder: Path) -> None:
    async with qemu(folder, "g", *TOP, "-device", "virtio-blk-pci,drive=top") as qmp:
        for name in ("events", "pause-before-switchover"):
            states = [{"capability": name, "state": True}]
            await qmp.execute("migrate-set-capabilities", capabilities=states)
        source = driver(folder)
        await (await source.recover(await source.describe("g"))).resume()
        said = await qmp.execute("query-migrate-capabilities")
        assert {each["capability"] for each in said if each["state"]} == {"events"}


async def test_a_socket_where_nobody_answers_is_passed_over(folder: Path) -> None:
    (folder / "stale.qmp").touch()
    assert list(await driver(folder).guests()) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-device", "virtio-blk-pci,drive=top", "-m", "32"], "bytes of memory"),
        (["-device", "virtio-blk-pci,drive=top", "-device", "virtio-rng-pci"], "not in the source"),
        (["-device", "ide-hd,drive=top,bus=ide.0"], "is missing"),
        (["-device", "virtio-blk-pci,drive=top", "-cpu", "Westmere"], "processor"),
        (["-device", "virtio-blk-pci,drive=top", "-smp", "2"], "processors"),
    ],
)
async def test_a_waiting_qemu_that_differs_is_refused_and_left_alone(
    folder: Path, words: list[str], complaint: str
) -> None:
    source, waiting = folder / "source", folder / "waiting"
    same = [*TOP, "-device", "virtio-blk-pci,drive=top"]
    async with (
        qemu(source, "g", "-S", *same),
        qemu(waiting, "g", "-S", "-incoming", "defer", *TOP, *words) as qmp,
    ):
        guest = await driver(source).describe("g")
        destination = driver(waiting, incoming=str(waiting / "g.qmp"))
        assert await destination.check_arrival(guest) == []
        with pytest.raises(HypervisorError, match=complaint):
            await destination.arrive(guest, arriving(guest), stream_pair()[0])
        assert (await qmp.execute("query-status"))["status"] == "inmigrate"


async def test_a_waiting_qemu_set_to_what_cannot_be_carried_is_refused(
    folder: Path,
) -> None:
    source, waiting = folder / "source", folder / "waiting"
    same = [*TOP, "-device", "virtio-blk-pci,drive=top"]
    async with (
        qemu(source, "g", "-S", *same),
        qemu(waiting, "g", "-S", "-incoming", "defer", *same) as qmp,
    ):
        guest = await driver(source).describe("g")
        colo = [{"capability": "x-colo", "state": True}]
        await qmp.execute("migrate-set-capabilities", capabilities=colo)
        destination = driver(waiting, incoming=str(waiting / "g.qmp"))
        with pytest.raises(HypervisorError, match="x-colo"):
            await destination.arrive(guest, arriving(guest), stream_pair()[0])
        assert (await qmp.execute("query-status"))["status"] == "inmigrate"
        assert not (await qmp.execute("query-migrate"))


def arriving(guest: Any) -> list[ArrivingDisk]:
    """The guest's disks, served by nobody."""
    return [
        ArrivingDisk(disk=disk, volume="raw", location="/none", export="nbd+unix:///x?socket=/none")
        for disk in guest.disks
    ]


class ByHand(QemuHosts):
    """The source was started with -drive, the destination waits."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, write_rate=150)
        trial: Any = self.trial
        make = trial._source_words

        def with_drive() -> list[str]:
            words = make()
            at = words.index("-blockdev")
            device = words.index("-device")
            file = f"file={folder}/disk0.raw,format=raw,if=none,id=old,discard=unmap"
            words[at : at + 2] = ["-drive", file]
            words[device + 1] = words[device + 1].replace("drive=disk0-node", "drive=old")
            return [str(word) for word in words]

        trial._source_words = with_drive

    def _options(self, role: str) -> list[str]:
        options = super()._options(role)
        if role == "destination":
            options[options.index("--hypervisor-opt", 2) + 1] = (
                f"incoming={self.trial.socket(role)}"
            )
        return options

    async def wait_there(self) -> StartedQemu:
        values = {"name": "demo", "uuid": "", "memory": "16", "vcpus": "1", "machine": "pc"}
        command = self.trial.command("destination").replace("-uuid '{uuid}'", "")
        for name, value in values.items():
            command = command.replace(f"'{{{name}}}'", value)
        words = command.replace("{disk:disk0}", "top").replace("'", "").split()
        waiting = [*words, *TOP, "-S", "-incoming", "defer"]
        return await start_qemu(waiting, self.trial.socket("destination"))


@pytest.mark.guest
async def test_a_guest_goes_from_a_drive_into_a_qemu_that_waits(folder: Path) -> None:
    hosts = ByHand(folder)
    try:
        await hosts.start(16 * MIB)
        waiting = await hosts.wait_there()
        await (await waiting.connected(60)).close()
        await hosts.moved("--threshold", "8MiB")
        await hosts.goes_on()
        verdict = await hosts.judge_there()
        assert verdict.good, verdict
        waiting.forget()
    finally:
        await hosts.close()
