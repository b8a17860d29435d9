"""The laboratory as a hypervisor of the matrix: which commands its hosts are given, and when."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pretending import Describe

from vmferry.api import Load
from vmferry.errors import InputError
from vmferry.experiments.backends import backend, xen, xen_lab
from vmferry.experiments.definition import read_definition
from vmferry.experiments.executors import perform
from vmferry.experiments.matrix import make_cells
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import RunSpec
from vmferry.experiments.workloads import WORKLOADS
from vmferry_lab.guest import FioReport

LOG = "\n".join(
    [
        json.dumps({"event": "phase_changed", "time": "2026-01-02T03:04:05Z", "phase": "stop"}),
        "some other line",
        json.dumps({"event": "phase_changed", "time": "2026-01-02T03:04:07Z", "phase": "done"}),
        json.dumps(
            {
                "event": "finished",
                "time": "2026-01-02T03:04:07Z",
                "phases": {"stop": 2.0},
                "pending": 4096,
            }
        ),
        "CODE=0",
    ]
)
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
"""What the log begins with."""
BOOTED = BEGAN - 100.0
JOB = "[one]\nverify=crc32c\n"
VERDICT = SimpleNamespace(good=True, gap=1.5, bad_now=0, bad=0, sectors=512, writes=9, errors=0)


class Host:
    def __init__(self, name: str, said: list[Any]) -> None:
        self.name, self.said, self.guests = name, said, self
        self.judgement = VERDICT
        self.reports: list[Any] = []
        self.complaints = ""

    def run(self, command: Any, **_: Any) -> str:
        line = command if isinstance(command, str) else " ".join(command)
        self.said.append((self.name, line))
        if line == "cat /sys/class/net/xenbr0/statistics/tx_bytes":
            return f"{1000 * len(self.said)}\n"
        return "6.1\n"

    def order(self, name: str, line: str) -> None:
        self.said.append((self.name, line))

    def verdict(self, name: str) -> Any:
        return self.judgement

    def booted(self, name: str) -> float:
        return BOOTED

    def fio(self, name: str) -> list[Any]:
        return self.reports

    def fio_said(self, name: str) -> str:
        return self.complaints

    def fio_pass(self, name: str, *, timeout: float) -> Any:
        self.said.append((self.name, "fio_pass", timeout))
        return self.reports[-1]


class Ferry:
    name = "ferry-1"
    exit_code = 0

    def __init__(self, said: list[Any]) -> None:
        self.said = said

    def guest(self, **facts: Any) -> None:
        self.said.append(("guest", facts))

    def start(self, disks: list[str], **writer: Any) -> None:
        self.said.append(("start", disks, writer))

    def serve(self, *words: str) -> None:
        self.said.append(("serve", words))

    def set_clocks(self) -> None:
        self.said.append(("clocks",))

    def listening(self) -> None:
        self.said.append(("listening",))

    def run(self, tracker: str, *words: str) -> None:
        self.said.append(("run", tracker, words))

    def code(self, host: Any = None) -> int:
        return self.exit_code

    def log(self, host: Any) -> str:
        return LOG + "\nmigrate: error: no room"

    def close(self) -> None:
        self.said.append(("close",))


class Mirror:
    device = "/dev/drbd0"

    def __init__(self, said: list[Any]) -> None:
        self.said = said

    def connect(self) -> None:
        self.said.append(("connect",))

    def await_copy(self, *, timeout: float) -> int:
        self.said.append(("await copy", timeout))
        return 4096

    def promote(self) -> None:
        self.said.append(("promote",))

    def part(self) -> None:
        self.said.append(("part",))

    def sent(self) -> int:
        self.said.append(("asked",))
        time.sleep(0.2)
        return 4096 * len(self.said)


class Lab:
    root = Path("/somewhere")

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.hosts = [Host("hosta", self.said), Host("hostb", self.said)]
        self.flavours = {"drbd", "storage"}
        self.alone = ""
        self.up = True

    def is_up(self) -> bool:
        return self.up

    def xen_hosts(self) -> list[Host]:
        return self.hosts

    def share_disk(self, name: str, size: int) -> str:
        self.said.append(("share", name, size))
        return "/dev/shared"

    def unshare_disk(self, name: str) -> None:
        self.said.append(("unshare", name))

    def mirror_disk(self, name: str, size: int) -> Mirror:
        self.said.append(("mirror", name, size))
        return Mirror(self.said)

    def unmirror_disk(self, name: str) -> None:
        self.said.append(("unmirror", name))


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    found = Lab()
    monkeypatch.setattr(xen_lab, "lab_of", lambda spec: found)
    monkeypatch.setattr(xen._XenRun, "_ferry", lambda self: Ferry(found.said))

    @contextmanager
    def alone(self: xen._XenRun, interface: str) -> Iterator[None]:
        found.alone = interface
        try:
            yield
        finally:
            found.alone = ""

    monkeypatch.setattr(xen._XenRun, "_alone", alone)
    return found


def spec(workload: str = "web", **values: Any) -> RunSpec:
    parameters = Parameters(hypervisor="xen", disk_size=64 << 20, **values)
    return RunSpec(parameters=parameters, load=WORKLOADS[workload], before=0, after=0)


def in_order(said: list[Any], *wanted: Any) -> bool:
    """Whether all of these were said, one after the other, with others between them or not."""
    places = [said.index(one) for one in wanted]
    return places == sorted(places)


async def test_vmferry_moves_a_guest_over_a_shaped_lan(lab: Lab) -> None:
    result = await perform(spec(latency=0.005, loss=0.01, bandwidth=1000, block_size=8192))
    assert result.outcome == "done", result.error
    netem = "tc qdisc replace dev xenbr0 root netem delay 5ms loss 1% rate 8000bit"
    assert ("hosta", netem) in lab.said
    assert ("hostb", netem) in lab.said
    (run,) = [one for one in lab.said if one[0] == "run"]
    assert lab.said.index(("clocks",)) < lab.said.index(run)
    assert run[1] == "blkback"
    assert run[2][:2] == ("--block-size", "8192")
    assert [one[0] for one in lab.said][-3:] == ["hosta", "hostb", "close"]
    assert (result.figures["pending"], result.figures["downtime_guest"]) == (4096, 1.5)
    assert ("source", "stop", 2.0) in [(one.role, one.name, one.seconds) for one in result.phases]


async def test_a_clock_that_is_not_emulated_times_vmferry_too(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Ferry, host: Any = None) -> int:
        time.sleep(1.0 if host else 0.2)
        return 0

    monkeypatch.setattr(Ferry, "code", slow)
    (ended,) = [one for one in (await perform(spec())).events if one.name == "command-ended"]
    assert 0.2 <= ended.time < 1, "the destination's command is not waited for"
    assert ended.facts["seconds"] == pytest.approx(ended.time, abs=0.001)


@pytest.mark.parametrize("method", ["vmferry", "xl-drbd"])
async def test_nobody_else_migrates_until_the_last_disk_is_removed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    alone: list[str] = []
    for kind, name in (
        (Ferry, "serve"),
        (Ferry, "start"),
        (Ferry, "close"),
        (Lab, "unmirror_disk"),
    ):
        monkeypatch.setattr(kind, name, lambda *_, **__: alone.append(lab.alone))
    await perform(spec(method=method, latency=0.005))
    assert alone == ["xenbr0"] * (3 if method == "xl-drbd" else 2)
    assert lab.alone == ""


class Slow(Ferry):
    """Takes its time for the agent, whose end is not looked for until it is told to go on."""

    begun = threading.Event()
    go_on = threading.Event()

    def serve(self, *words: str) -> None:
        super().serve(*words)
        self.begun.set()
        assert self.go_on.wait(10)


@pytest.fixture
def slow(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    monkeypatch.setattr(xen._XenRun, "_ferry", lambda self: Slow(lab.said))
    for name in ("begun", "go_on"):
        monkeypatch.setattr(Slow, name, threading.Event())
    return Slow


async def test_a_run_that_takes_too_long_has_ended_when_the_next_begins(
    lab: Lab, slow: type[Slow]
) -> None:
    limited = msgspec.structs.replace(spec(latency=0.005), timeout=0.1)
    run = asyncio.create_task(perform(limited))
    await asyncio.sleep(0.3)
    assert not run.done(), "its thread still drives the hosts"
    slow.go_on.set()
    result = await run
    assert "longer than 0.1 s" in result.error
    assert lab.said[-1] == ("close",)
    assert [one for one in lab.said if "qdisc del" in str(one)]
    assert not [one for one in lab.said if one[0] == "guest"], "the next step was not begun"


async def test_whoever_is_impatient_waits_too(lab: Lab, slow: type[Slow]) -> None:
    run = asyncio.create_task(perform(spec()))
    await asyncio.to_thread(slow.begun.wait, 10)
    for _ in range(3):
        run.cancel()
        await asyncio.sleep(0.05)
    assert not run.done()
    slow.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert lab.said[-1] == ("close",)


async def test_a_run_that_is_stopped_does_not_pause_any_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    patient = msgspec.structs.replace(spec(), before=30.0, timeout=0.3)
    result = await perform(patient)
    assert "longer than 0.3 s" in result.error
    assert time.monotonic() - began < 10
    assert lab.said[-1] == ("close",)
    assert not [one for one in lab.said if one[0] == "run"]


async def test_no_phase_begins_after_the_run_was_stopped(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: Mirror, *, timeout: float) -> int:
        time.sleep(0.5)
        return 0

    monkeypatch.setattr(Mirror, "await_copy", late)
    result = await perform(msgspec.structs.replace(spec(method="xl-drbd"), timeout=0.2))
    assert [one.name for one in result.phases] == ["sync"]
    assert ("promote",) not in lab.said
    assert lab.said[-1] == ("unmirror", "ferry-1")


async def test_a_tracker_is_named_once(lab: Lab) -> None:
    await perform(spec(tracker="dm-era"))
    (run,) = [one for one in lab.said if one[0] == "run"]
    assert run[1] == "dm-era"
    assert "--tracker" not in run[2]


async def test_xl_moves_it_on_shared_storage(lab: Lab) -> None:
    result = await perform(spec("diabolical", method="xl-migrate"))
    assert result.outcome == "done", result.error
    assert ("hosta", "xl migrate ferry-1 hostb") in lab.said
    (start,) = [one for one in lab.said if "start" in one]
    assert start[1] == ["/dev/shared"]
    assert start[2]["rate"] == "max"
    assert in_order(
        lab.said, ("clocks",), ("hosta", "reset"), ("hosta", "xl migrate ferry-1 hostb")
    ), "the guest's boot is no downtime"
    assert lab.said[-2:] == [("close",), ("unshare", "ferry-1")]
    assert result.figures["total"] is not None
    assert result.figures["sent"] > 0
    assert not [one for one in lab.said if "tc qdisc" in str(one)]


async def test_xl_moves_it_while_drbd_mirrors_its_disk(lab: Lab) -> None:
    result = await perform(spec(method="xl-drbd"))
    assert result.outcome == "done", result.error
    (start,) = [one for one in lab.said if "start" in one]
    assert start[1] == ["/dev/drbd0"]
    assert in_order(
        lab.said,
        ("mirror", "ferry-1", 64 << 20),
        start,
        ("clocks",),
        ("hosta", "reset"),
        ("connect",),
        ("await copy", 600.0),
        ("promote",),
        ("hosta", "xl migrate ferry-1 hostb"),
        ("part",),
    ), "the copy is a part of the move, and the guest is judged on the destination's disk alone"
    assert lab.said[-2:] == [("close",), ("unmirror", "ferry-1")]
    names = [one.name for one in result.phases]
    assert names == ["sync", "promote", "migrate", "part"]
    last = result.phases[-1]
    assert result.figures["total"] == last.begin + last.seconds
    assert result.figures["downtime_guest"] == 1.5
    copied, parted = result.events
    assert copied.facts["sent"] == 4096
    assert parted.facts["sent"] > 4096
    assert in_order(lab.said, ("await copy", 600.0), ("promote",), ("part",), ("asked",))
    assert lab.said.count(("asked",)) == 1, "nothing is asked while the move is timed"


async def test_a_mirrored_disk_is_removed_after_a_failure(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Mirror, *, timeout: float) -> None:
        raise InputError("the hosts have parted")

    monkeypatch.setattr(Mirror, "await_copy", fail)
    result = await perform(spec(method="xl-drbd"))
    assert (result.outcome, result.error) == ("failed", "InputError: the hosts have parted")
    assert [one.name for one in result.phases] == ["sync"]
    assert lab.said[-2:] == [("close",), ("unmirror", "ferry-1")]


async def test_what_cannot_be_closed_does_not_keep_the_disk(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Ferry) -> None:
        raise InputError("no answer")

    monkeypatch.setattr(Ferry, "close", fail)
    result = await perform(spec(method="xl-drbd"))
    assert "no answer" in result.error
    assert lab.said[-1] == ("unmirror", "ferry-1")


@pytest.mark.parametrize(
    ("method", "flavour", "option"),
    [("xl-drbd", "drbd", "--with drbd"), ("xl-migrate", "storage", "--storage")],
)
def test_a_laboratory_without_what_a_method_needs_is_refused_before_the_first_run(
    lab: Lab, describe: Describe, method: str, flavour: str, option: str
) -> None:
    text = f"[matrix]\nhypervisor = 'xen'\nmethod = ['vmferry', '{method}']\n"
    assert len(make_cells(describe(text))) == 2
    lab.flavours.remove(flavour)
    with pytest.raises(InputError, match=f"'{method}'.*/somewhere.*down, then .* up {option}"):
        make_cells(describe(text))
    lab.up = False
    assert len(make_cells(describe(text))) == 2, "it can be planned without a laboratory"


async def test_a_failure_is_quoted_and_everything_removed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ferry, "exit_code", 4)
    result = await perform(spec())
    assert result.outcome == "failed"
    assert "code 4: migrate: error: no room" in result.error
    assert lab.said[-1] == ("close",)


async def test_lost_data_is_a_failure(lab: Lab) -> None:
    lab.hosts[1].judgement = SimpleNamespace(**{**vars(VERDICT), "good": False, "bad_now": 3})
    result = await perform(spec())
    assert result.outcome == "failed"
    assert "3 sectors" in result.error


def report(number: int, uptime: float, writes: int, **more: Any) -> Any:
    return FioReport(number=number, uptime=uptime, writes=writes, write_seconds=writes / 10, **more)


def with_fio(**values: Any) -> RunSpec:
    return msgspec.structs.replace(spec(**values), load=Load(fio=JOB), timeout=77.0)


@pytest.fixture
def fio(lab: Lab) -> Lab:
    """A laboratory whose guest does two passes of its job, the second while it is moved."""
    here, there = lab.hosts
    here.reports = [report(1, 90, 5), report(1, 95, 10, code=0), report(2, 101, 4)]
    there.reports = [report(2, 106, 6, reads=20), report(2, 110, 8, reads=30, code=0)]
    return lab


async def test_the_guest_runs_fio_while_it_is_moved(fio: Lab) -> None:
    result = await perform(with_fio())
    assert result.outcome == "done", result.error
    (start,) = [one for one in fio.said if one[0] == "guest"]
    assert start[1]["fio"] == JOB
    assert start[1]["size"] == 64 << 20
    waited = fio.said.index(("hostb", "fio_pass", 77.0))
    assert fio.said.index(next(one for one in fio.said if one[0] == "run")) < waited
    assert result.figures["checked"] == 512, "the writer on the other disk is judged too"


async def test_what_fio_reports_are_series_that_go_on_from_pass_to_pass(fio: Lab) -> None:
    series = (await perform(with_fio())).series
    assert series["writes"].times == [-10.0, -5.0, 1.0, 6.0, 10.0]
    assert series["writes"].values == [5, 10, 14, 16, 18]
    assert series["reads"].values == [0, 0, 0, 20, 30]
    assert series["busy"].values == pytest.approx([0.5, 1.0, 1.4, 1.6, 1.8])


async def test_each_pass_is_an_event(fio: Lab) -> None:
    first, second = [one for one in (await perform(with_fio())).events if one.name == "fio"]
    assert (first.role, first.time, first.facts["pass"]) == ("guest", -5.0, 1)
    assert (second.facts["seconds"], second.facts["writes"], second.facts["code"]) == (15.0, 8, 0)
    assert second.facts["write_latency"] == pytest.approx(0.1)
    assert first.facts["read_latency"] is None


@pytest.mark.parametrize("wrong", [{"code": 1}, {"error": 84}])
@pytest.mark.parametrize("place", [0, 1])
async def test_fio_that_fails_in_any_pass_is_a_failure_with_its_words(
    fio: Lab, place: int, wrong: dict[str, int]
) -> None:
    fio.hosts[place].reports[0] = report(1 + place, 90, 5, **wrong)
    fio.hosts[place].complaints = "verify: bad magic header"
    result = await perform(with_fio())
    assert result.outcome == "failed"
    assert f"failed in pass {1 + place}" in result.error
    assert "bad magic header" in result.error
    assert result.series["writes"].values
    waited = any("fio_pass" in one for one in fio.said)
    assert waited == bool(place), "fio that failed at the source says no more"


async def test_for_xl_both_disks_are_on_shared_storage(fio: Lab) -> None:
    result = await perform(with_fio(method="xl-migrate"))
    assert result.outcome == "done", result.error
    shared = [one[1:] for one in fio.said if one[0] == "share"]
    assert shared == [("ferry-1", 64 << 20), ("ferry-1-writer", 16 << 20)]
    assert fio.said[-2:] == [("unshare", "ferry-1"), ("unshare", "ferry-1-writer")]


async def test_a_guest_without_fio_is_not_asked_for_it(lab: Lab) -> None:
    result = await perform(spec())
    assert not [one for one in lab.said if "fio_pass" in one]
    assert "written_bytes" not in result.series


def test_without_a_laboratory_it_is_said_how_to_have_one(tmp_path: Path) -> None:
    other = RunSpec(parameters=Parameters(hypervisor="xen"), lab={"folder": str(tmp_path)})
    with pytest.raises(InputError, match=r"vmferry_lab up$"):
        xen_lab.open_lab(other)
    mirrored = Parameters(hypervisor="xen", method="xl-drbd")
    with pytest.raises(InputError, match="vmferry_lab up --with drbd"):
        xen_lab.open_lab(RunSpec(parameters=mirrored, lab={"folder": str(tmp_path)}))


def test_what_it_cannot_do_is_refused_or_noted(describe: Describe) -> None:
    (cell,) = make_cells(describe("[matrix]\nhypervisor = 'xen'\nworkload = 'video'\n"))
    assert "4 KiB" in cell.notes[0]
    with pytest.raises(InputError, match="whole MiB"):
        make_cells(describe("[matrix]\nhypervisor = 'xen'\ndisk_size = 4096\n"))
    with pytest.raises(InputError, match="interfaces"):
        make_cells(describe("[matrix]\nhypervisor = 'xen'\n[lab]\ninterfaces = 'a'\n"))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "experiments").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_experiments_that_come_along_are_valid(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMFERRY_LAB", str(tmp_path))  # one that is up may refuse some
    cells = make_cells(read_definition(path))
    assert len(cells) > 1
    assert all(backend(cell.spec.parameters.hypervisor) for cell in cells)


async def test_drbd_mirrors_both_disks_of_a_guest_with_fio(fio: Lab) -> None:
    await perform(with_fio(method="xl-drbd"))
    mirrored = [one[1:] for one in fio.said if one[0] == "mirror"]
    assert mirrored == [("ferry-1", 64 << 20), ("ferry-1-writer", 16 << 20)]
    assert fio.said.count(("connect",)) == fio.said.count(("part",)) == 2
    assert fio.said[-2:] == [("unmirror", "ferry-1"), ("unmirror", "ferry-1-writer")]
