"""QEMU guests of the matrix that run fio: what is refused, and what is made of what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pretending import Describe

from vmferry.api import Load, Moved, TrialStatus, Verdict
from vmferry.errors import HypervisorError, InputError
from vmferry.experiments.backends import backend, qemu
from vmferry.experiments.backends.trial import TrialRun
from vmferry.experiments.executors import perform
from vmferry.experiments.executors.local import LocalExecutor
from vmferry.experiments.matrix import make_cells
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import RunSpec
from vmferry.experiments.sweep import Sweep
from vmferry_hypervisors.qemu.trial import QemuTrial
from vmferry_lab.fiotrial import FioTrial
from vmferry_lab.guest import FioReport

MIB = 1 << 20
JOB = "[one]\nverify=crc32c\nrw=write\nsize=1m\n"
EXPERIMENT = """\
[matrix]
hypervisor = "qemu"
workload = "mine"
memory = "128MiB"
{}
[workload.mine]
fio = "jobs.fio"
"""


class Guest:
    """A trial whose guest has booted 100 s before it is moved, and is then in its second pass."""

    tells_switch = True

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.here = [report(1, 90, 5), report(1, 95, 10, code=0), report(2, 99, 4)]
        self.there = [report(2, 106, 6, reads=20), report(2, 110, 8, reads=30, code=0)]
        self.late = ""
        self.moved = False
        self.judgement = Verdict(acknowledged=9, checked=512)
        self.booted = 0.0
        self.complaints = "verify: bad magic header"

    async def start(self, folder: Path, disk_size: int) -> str:
        self.said.append(("start", disk_size))
        return "demo"

    async def move(self, method: str, link: Any) -> Moved:
        self.said.append((method, link.bandwidth))
        self.moved = True
        return Moved(phases={"mirror": 1.0, "stop": 0.5}, location="copy-disk0.raw")

    async def status(self) -> TrialStatus:
        return TrialStatus(switch_gap=0.25)

    async def fio(self) -> list[FioReport]:
        return self.here + (self.there if self.moved else [])

    def fio_said(self) -> str:
        return self.complaints

    async def fio_pass(self, timeout: float) -> None:
        self.said.append(("pass", timeout))
        if self.late:
            raise HypervisorError(self.late)

    async def verdict(self, location: str) -> Verdict:
        self.said.append(("verdict", location))
        return self.judgement

    async def close(self) -> None:
        self.said.append(("close",))


def report(number: int, uptime: float, writes: int, **more: Any) -> FioReport:
    return FioReport(number=number, uptime=uptime, writes=writes, write_seconds=writes / 10, **more)


def spec(**more: Any) -> RunSpec:
    axes = {"hypervisor": "qemu", "method": "qemu-mirror", "memory": 128 * MIB, **more}
    return RunSpec(
        parameters=msgspec.convert(axes, Parameters), load=Load(fio=JOB), before=0, after=0
    )


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    found = Guest()

    def make(self: Any, spec: RunSpec) -> Guest:
        return found

    begin = TrialRun._move

    async def move(self: TrialRun) -> str:
        location = await begin(self)
        found.booted = self.result.begun - 100
        return location

    monkeypatch.setattr(qemu.QemuBackend, "make", make)
    monkeypatch.setattr(TrialRun, "_move", move)
    return found


async def test_what_fio_reports_goes_on_from_pass_to_pass_and_the_writer_is_judged(
    guest: Guest,
) -> None:
    result = await perform(spec())
    assert result.outcome == "done", result.error
    assert result.series["writes"].times == [-10.0, -5.0, -1.0, 6.0, 10.0]
    assert result.series["writes"].values == [5, 10, 14, 16, 18]
    assert result.series["reads"].values == [0, 0, 0, 20, 30]
    first, second = [one.facts for one in result.events if one.name == "fio"]
    assert (first["pass"], second["code"], second["seconds"]) == (1, 0, 15.0)
    assert result.figures["downtime_guest"] == 0.25
    assert (result.figures["checked"], result.figures["lost"]) == (512, 0)
    ways = [one[0] for one in guest.said]
    assert ways == ["start", "qemu-mirror", "pass", "verdict", "close"]
    assert guest.said[2] == ("pass", 600.0)
    assert result.notes == []


async def test_a_job_that_compares_nothing_is_noted_with_the_run(guest: Guest) -> None:
    unverified = msgspec.structs.replace(spec(), load=Load(fio="[one]\nrw=write\n"))
    assert "no `verify`" in (await perform(unverified)).notes[0]


@pytest.mark.parametrize("wrong", [{"code": 1}, {"error": 84}])
@pytest.mark.parametrize("place", ["here", "there"])
async def test_fio_that_fails_on_either_host_is_a_failure_with_its_words(
    guest: Guest, place: str, wrong: dict[str, int]
) -> None:
    getattr(guest, place)[-1] = report(2, 110, 8, **wrong)
    result = await perform(spec())
    assert result.outcome == "failed"
    assert "failed in pass 2" in result.error
    assert "bad magic header" in result.error
    assert result.series["writes"].values, "what was reported until then is kept"
    assert not [one for one in guest.said if one[0] == "pass"], "it would not go on"


async def test_a_pass_that_does_not_end_is_a_failure(guest: Guest) -> None:
    guest.late = "the guest does not say that its fio has ended a pass"
    result = await perform(spec())
    assert (result.outcome, result.error) == ("failed", f"HypervisorError: {guest.late}")
    assert result.series["writes"].values


async def test_a_block_that_the_writer_lost_is_a_failure(guest: Guest) -> None:
    guest.judgement = Verdict(acknowledged=9, checked=512, lost=1, bad_reads=1)
    result = await perform(spec())
    assert result.outcome == "failed"
    assert "1 lost" in result.error


async def test_a_move_that_fails_is_told_first(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Guest, method: str, link: Any) -> Moved:
        raise HypervisorError("QEMU refused it")

    monkeypatch.setattr(Guest, "move", fail)
    result = await perform(spec())
    assert "QEMU refused it" in result.error
    assert guest.said[-1] == ("close",)


def test_with_fio_it_is_the_laboratorys_guest_and_without_the_plugins() -> None:
    found = backend("qemu")
    assert isinstance(found, qemu.QemuBackend)
    assert found.kind(spec()) is FioTrial
    plain = msgspec.structs.replace(spec(), load=Load())
    assert found.kind(plain) is QemuTrial
    assert found.estimate(spec()) > found.estimate(plain) + 60


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.fio"
    path.write_text(JOB)
    return path


@pytest.mark.usefixtures("job")
def test_a_cell_is_planned_for_each_way_to_move_it(describe: Describe) -> None:
    cells = make_cells(
        describe(EXPERIMENT.format("method = ['vmferry', 'qemu-mirror']\ncompression = 'none'"))
    )
    assert [cell.notes for cell in cells] == [(), ()]


@pytest.mark.parametrize("word", ["filename=/dev/vda", "filename=/dev/xvda", "rw=write"])
def test_one_job_file_does_for_qemu_and_xen(describe: Describe, job: Path, word: str) -> None:
    job.write_text(f"{JOB}{word}\n")
    text = EXPERIMENT.format("").replace('"qemu"', '["qemu", "xen"]')
    assert len(make_cells(describe(text))) == 2


def test_a_job_that_compares_nothing_is_noted_with_the_plan(describe: Describe, job: Path) -> None:
    job.write_text("[one]\nrw=write\n")
    (cell,) = make_cells(describe(EXPERIMENT.format("")))
    assert "no `verify`" in cell.notes[0]


REFUSED = {
    "memory = '64MiB'": r"memory 64\.0 MiB: .*does not boot.*96\.0 MiB; memory = \"128MiB\"",
    "disk_size = '4100KiB'": "disk_size 4198400: use whole MiB",
    "tracker = 'dm-era'": "tracker is 'qcow2', not 'dm-era'",
    "volume = 'qemu'": "volume is 'raw' or 'qcow2', not 'qemu'",
    "method = 'cold'": "'cold'",
    "[plugins.trial.qemu]\nwrite_rate = 3": "no option 'write_rate'",
    "[plugins.trial.qemu]\ndevice = 'ide'": "device",
    "[lab]\nfolders = 'x'": "folders",
}


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("more", REFUSED)
def test_what_the_guest_cannot_be_is_refused_before_the_first_run(
    describe: Describe, more: str
) -> None:
    text = EXPERIMENT
    if more.startswith("memory"):
        text = text.replace('memory = "128MiB"\n', "")
    with pytest.raises(InputError, match=REFUSED[more]):
        make_cells(describe(text.format(more)))


async def _sweep(describe: Describe) -> None:
    begun: list[Any] = []
    try:
        await Sweep(
            describe(EXPERIMENT.format("")), LocalExecutor(), lambda *run: begun.append(run)
        ).run()
    finally:
        assert not begun


@pytest.mark.usefixtures("job")
async def test_a_guest_that_was_not_built_is_said_before_the_first_run(
    describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMFERRY_LAB", str(tmp_path / "a lab"))
    with pytest.raises(InputError, match=r"no QEMU guest .* --state-dir '.*/a lab' guest$"):
        await _sweep(describe)
    assert not (tmp_path / "a lab").exists()


@pytest.mark.usefixtures("job")
async def test_without_the_laboratory_it_is_planned_and_not_run(
    describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vmferry_lab", None)
    assert len(make_cells(describe(EXPERIMENT.format("")))) == 1
    with pytest.raises(InputError, match=r"'mine' with hypervisor 'qemu' .*PYTHONPATH=lab"):
        await _sweep(describe)
