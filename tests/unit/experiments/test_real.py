"""Small sweeps of real process guests, through the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.experiments.leftovers import _processes
from vmferry.experiments.records import RunRow, load_runs, open_database
from vmferry.experiments.records.reading import load_phases, load_rounds, load_series

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

HEAD = """
[experiment]
repetitions = 1
before = "300ms"
after = "300ms"
"""
BOTH = """
[matrix]
method = ["vmferry", "cold"]
workload = "web"
disk_size = "16MiB"
memory = "16MiB"
latency = "1ms"
"""
ONE = """
[matrix]
workload = "diabolical"
disk_size = "16MiB"
memory = "16MiB"
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="x-") as folder:
        yield Path(folder)


def command(short: Path, text: str, *words: str) -> list[str]:
    path = short / "a.toml"
    path.write_text(text)
    usual = [sys.executable, "-m", "vmferry", "experiment", "run", str(path)]
    return [*usual, "--folder", str(short), *words]


def rows(short: Path) -> list[RunRow]:
    with open_database(short / "a.sqlite") as database:
        return load_runs(database)


def test_vmferry_and_a_cold_copy_are_measured(short: Path) -> None:
    done = subprocess.run(command(short, HEAD + BOTH), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row.parameters["method"]: row for row in rows(short)}
    for row in found.values():
        assert row.outcome == "done"
        assert (row.figures["lost"], row.figures["wrong"]) == (0, 0)
        assert (row.figures["acknowledged"] or 0) > 0
        assert 0 < (row.figures["downtime_guest"] or 0) < (row.figures["total"] or 0) + 1
        assert row.host["filesystem"]
        assert row.versions["vmferry"]
    assert found["cold"].figures["sent"] == 32 << 20
    with open_database(short / "a.sqlite") as database:
        row = found["vmferry"].id
        phases = {(one.role, one.name) for one in load_phases(database, row)}
        assert {("source", "stop"), ("source", "pull"), ("destination", "stop")} <= phases
        assert load_rounds(database, row)[0].scanned == 16 << 20
        series = load_series(database, row)
        assert {"moved", "pending", "writes", "busy"} <= set(series)
        assert series["writes"].times[0] < 0 < series["writes"].times[-1]
    assert sorted(path.name for path in short.iterdir() if path.is_dir()) == []


def test_a_sweep_that_is_killed_leaves_nothing_once_it_goes_on(short: Path) -> None:
    words = command(short, HEAD.replace("300ms", "30s") + ONE, "--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "run_begun"
        (folder,) = wait_for_guest(short)
        process.send_signal(signal.SIGKILL)
    assert _processes(str(folder))
    again = subprocess.run(command(short, HEAD + ONE), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert not _processes(str(folder))
    assert [row.outcome for row in rows(short)] == ["interrupted", "done"]


def wait_for_guest(short: Path) -> list[Path]:
    """The run's folder, once a guest runs on it."""
    while True:
        found = [path for path in short.glob("vmx-*") if (path / "source/demo/pid").exists()]
        if found:
            return found
        os.sched_yield()
