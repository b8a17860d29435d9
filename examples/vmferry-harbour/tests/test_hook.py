"""The hook plugin keeps its contract, and does what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vmferry_harbour.hook import Logbook

from vmferry.api import Guest, RoundReport, Summary
from vmferry.errors import Veto
from vmferry.testing.hook import HookConformance

REPORT = RoundReport(number=1, scanned=4096, sent=99, zeroes=0, seconds=1, dirty=512)
SUMMARY = Summary(job="j7", role="source", guest="web1", outcome="done", owner="destination")


class TestLogbook(HookConformance):
    """All of the contract."""

    @pytest.fixture
    def hook(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Logbook:
        """With a file to write to."""
        monkeypatch.setenv("VMFERRY_LOGBOOK", str(tmp_path / "log"))
        return Logbook()


def test_each_trip_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After those of its rounds."""
    monkeypatch.setenv("VMFERRY_LOGBOOK", str(tmp_path / "log"))
    Logbook().vmferry_round_finished("j7", REPORT)
    Logbook().vmferry_finished(SUMMARY)
    first, last = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first == {"job": "j7", "round": 1, "dirty": 512}
    assert (last["guest"], last["outcome"]) == ("web1", "done")


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is installed, but not wanted."""
    monkeypatch.delenv("VMFERRY_LOGBOOK", raising=False)
    monkeypatch.chdir(tmp_path)
    Logbook().vmferry_finished(SUMMARY)
    assert list(tmp_path.iterdir()) == []


def test_a_moored_guest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may move."""
    monkeypatch.setenv("VMFERRY_MOORED", "db1,web1")
    with pytest.raises(Veto, match="web1 is moored"):
        Logbook().vmferry_before_switch(Guest(name="web1", hypervisor="process"))
    Logbook().vmferry_before_switch(Guest(name="web2", hypervisor="process"))
