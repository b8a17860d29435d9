"""The laboratory as a hypervisor of the matrix: which commands its hosts are given, and when."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pretending import Describe

from vmferry.errors import InputError
from vmferry.experiments.backends import backend, xen
from vmferry.experiments.definition import read_definition
from vmferry.experiments.executors import perform
from vmferry.experiments.matrix import make_cells
from vmferry.experiments.parameters import Parameters
from vmferry.experiments.results import RunSpec
from vmferry.experiments.workloads import WORKLOADS

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
VERDICT = SimpleNamespace(good=True, gap=1.5, bad_now=0, bad=0, sectors=512, writes=9, errors=0)


class Host:
    def __init__(self, name: str, said: list[Any]) -> None:
        self.name, self.said, self.guests = name, said, self
        self.judgement = VERDICT

    def run(self, command: Any, **_: Any) -> str:
        self.said.append((self.name, command if isinstance(command, str) else " ".join(command)))
        return "6.1\n"

    def order(self, name: str, line: str) -> None:
        self.said.append((self.name, line))

    def verdict(self, name: str) -> Any:
        return self.judgement


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


class Lab:
    def __init__(self) -> None:
        self.said: list[Any] = []
        self.hosts = [Host("hosta", self.said), Host("hostb", self.said)]

    def xen_hosts(self) -> list[Host]:
        return self.hosts

    def share_disk(self, name: str, size: int) -> str:
        self.said.append(("share", name, size))
        return "/dev/shared"

    def unshare_disk(self, name: str) -> None:
        self.said.append(("unshare", name))


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    found = Lab()
    monkeypatch.setattr(xen, "open_lab", lambda spec: found)
    monkeypatch.setattr(xen._XenRun, "_ferry", lambda self: Ferry(found.said))
    return found


def spec(workload: str = "web", **values: Any) -> RunSpec:
    parameters = Parameters(hypervisor="xen", disk_size=64 << 20, **values)
    return RunSpec(parameters=parameters, load=WORKLOADS[workload], before=0, after=0)


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
    moved = lab.said.index(("hosta", "xl migrate ferry-1 hostb"))
    assert lab.said[moved - 1] == ("hosta", "reset"), "the guest's boot is no downtime"
    assert lab.said[moved - 2] == ("clocks",)
    assert lab.said[-2:] == [("close",), ("unshare", "ferry-1")]
    assert result.figures["total"] is not None
    assert not [one for one in lab.said if "tc qdisc" in str(one)]


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


def test_without_a_laboratory_it_is_said_how_to_have_one(tmp_path: Path) -> None:
    other = RunSpec(parameters=Parameters(hypervisor="xen"), lab={"folder": str(tmp_path)})
    with pytest.raises(InputError, match="vmferry_lab"):
        xen.open_lab(other)


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
def test_the_experiments_that_come_along_are_valid(path: Path) -> None:
    cells = make_cells(read_definition(path))
    assert len(cells) > 1
    assert all(backend(cell.spec.parameters.hypervisor) for cell in cells)
