"""A QEMU guest with fio, without QEMU: what is made of what it says, and of its silence."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.workload.recorder import _FRAME, Happened
from vmferry_lab.fiotrial import Console, FioTrial, FioTrialOptions
from vmferry_lab.qemuguest import QemuGuest

COUNTERS: dict[str, Any] = dict.fromkeys(
    ("writes", "reads", "flushes", "discards", "discards_refused", "errors", "bad"), 0
) | dict.fromkeys(("gap", "gap_running", "slowest", "uptime", "running"), 0.5)
JOB = "[one]\nrw=write\n"


class Line:
    """A guest's serial line, whose recorder's file is written here."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "record"
        self.asked: list[bytes] = []
        self.answers: list[str] = []
        self.time = 100.0

    def frame(self, happened: Happened, data: bytes = b"", connection: int = 0) -> None:
        self.time += 1
        frame = _FRAME.pack(self.time, connection, happened, len(data))
        with self.file.open("ab") as file:
            file.write(frame + data)

    def opens(self, connection: int = 0) -> None:
        self.frame(Happened.OPENED, connection=connection)

    def closes(self, connection: int = 0) -> None:
        self.frame(Happened.CLOSED, connection=connection)

    def says(self, text: str, connection: int = 0) -> None:
        self.frame(Happened.SPOKE, text.replace("\n", "\r\n").encode(), connection)

    def say(self, data: bytes) -> None:
        """As the recorder does: the guest is asked for something."""
        self.asked.append(data)
        number = data.decode().split()[1]
        for answer in self.answers:
            self.says(answer.replace("NUMBER", number) + "\n")


def fio(number: int, writes: int = 0, code: int | None = None, error: int = 0) -> str:
    facts = {"pass": number, "uptime": 3.0, "code": code, "error": error, "writes": writes}
    return f"FIO {json.dumps(facts)}\n"


def verdict(**changes: Any) -> str:
    facts = {"id": "NUMBER", "good": True, "sectors": 512, "bad_now": 0, **COUNTERS, **changes}
    return f"VERDICT {json.dumps(facts)}"


@pytest.fixture
def line(tmp_path: Path) -> Line:
    found = Line(tmp_path)
    found.opens()
    return found


@pytest.fixture
def trial(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FioTrial:
    files = QemuGuest(tmp_path / "the kernel", tmp_path / "initrd.img")
    found = FioTrial(FioTrialOptions(timeout=0.3), files, JOB, 7)
    monkeypatch.setattr(FioTrial, "recording", line)
    found._folder, found._size = tmp_path, 64 << 20
    found.console = Console(line.file)
    return found


def test_a_line_that_was_begun_on_one_host_and_ended_on_the_other_is_one(line: Line) -> None:
    console = Console(line.file)
    line.says("START {}\n.\nREP")
    console.update()
    line.opens(1)
    line.says("ORT {}\n.\nrest", connection=1)
    console.update()
    assert [(one.connection, one.text) for one in console.lines] == [
        (0, "START {}"),
        (1, "REPORT {}"),
    ]
    assert console.switches == [2.0], "between the last word there and the first here"


async def test_fios_times_are_by_this_machines_clock(line: Line, trial: FioTrial) -> None:
    line.says("START {}\n")
    line.says(fio(1, 3) + "FIO-SAID verify\n" + fio(1, 9, code=0) + 'FIO {"pa\nFIO-SAID bad\n')
    assert [(one.writes, one.code, one.uptime) for one in await trial.fio()] == [
        (3, None, 1),
        (9, 0, 1),
    ]
    assert trial.fio_said() == "verify\nbad"
    assert trial.booted > 1e9
    assert (await trial.status()).switch_gap is None


async def test_the_writers_counters_are_its_status(line: Line, trial: FioTrial) -> None:
    assert (await trial.status()).writes == 0
    line.says(f"REPORT {json.dumps({**COUNTERS, 'number': 1, 'writes': 4, 'bad': 1})}\n")
    found = await trial.status()
    assert (found.writes, found.bad_reads) == (4, 1)


async def test_it_has_begun_when_fio_is_at_work(line: Line, trial: FioTrial) -> None:
    line.says("START {}\n")
    with pytest.raises(HypervisorError, match=r"what its fio does within 0\.3 s; .*START"):
        await trial._first_word()
    line.says(fio(1))
    await trial._first_word()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("FATAL no disk\n", "cannot use its disks: FATAL no disk"),
        (f"START {{}}\nFIO-SAID too small\n{fio(1, code=1)}", "not do its job: too small"),
        (f"START {{}}\n{fio(1, error=84)}", "does not do its job"),
        ("Kernel panic\n", "that its writer has begun within .*Kernel panic"),
    ],
)
async def test_a_guest_that_does_not_begin_is_quoted(
    line: Line, trial: FioTrial, said: str, words: str
) -> None:
    line.says(said)
    with pytest.raises(HypervisorError, match=words):
        await trial._first_word()


async def test_a_pass_that_ended_before_the_move_is_not_the_one_that_is_waited_for(
    line: Line, trial: FioTrial
) -> None:
    line.says(fio(1, code=0) + fio(2))
    line.opens(1)
    line.says(fio(2), connection=1)
    with pytest.raises(HypervisorError, match="has ended a pass within"):
        await trial.fio_pass(0.2)
    line.says(fio(2, code=0), connection=1)
    await trial.fio_pass(0.2)


async def test_fio_that_fails_there_is_not_waited_for(line: Line, trial: FioTrial) -> None:
    line.opens(1)
    line.says(fio(2, error=84), connection=1)
    await trial.fio_pass(0.2)


async def test_a_guest_that_is_gone_is_not_waited_for(line: Line, trial: FioTrial) -> None:
    line.says("Kernel panic\n")
    line.closes()
    with pytest.raises(HypervisorError, match="runs nowhere; it said last: Kernel panic"):
        await trial.fio_pass(60)


async def test_the_writer_compares_all_and_is_judged(line: Line, trial: FioTrial) -> None:
    line.answers = [verdict().replace("NUMBER", "another"), verdict(bad_now=2, bad=3, writes=9)]
    found = await trial.verdict("anywhere")
    assert line.asked[0].startswith(b"check ")
    assert line.asked[0].endswith(b"\n")
    assert (found.acknowledged, found.checked, found.lost, found.bad_reads) == (9, 512, 2, 3)


async def test_requests_that_failed_are_no_good_end(line: Line, trial: FioTrial) -> None:
    line.answers = [verdict(errors=4)]
    with pytest.raises(HypervisorError, match="4 of the requests"):
        await trial.verdict("anywhere")


def test_its_kernel_is_told_of_the_writers_disk_alone(trial: FioTrial, tmp_path: Path) -> None:
    words = shlex.split(trial.command("source"))
    assert words[words.index("-kernel") + 1] == str(tmp_path / "the kernel")
    kernel = words[words.index("-append") + 1].split()
    assert {"console=ttyS0", "writer.disks=vdb", "writer.seed=7", "writer.tick=10"} <= set(kernel)
    assert [word for word in words if "id=disk" in word] == [
        "virtio-blk-pci,id=disk0,bootindex=1,drive={disk:disk0}",
        "virtio-blk-pci,id=disk1,bootindex=2,drive={disk:disk1}",
    ]
    assert trial.command("destination").count("writer.disks") == 1
    assert trial.sizes == {"disk0": 64 << 20, "disk1": 16 << 20}
