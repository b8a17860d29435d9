"""A cluster does a sweep, and loses a worker meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from vmferry.cli import main
from vmferry.experiments.records import load_runs, open_database

MATRIX = """
[experiment]
repetitions = 3
before = "100ms"
[matrix]
hypervisor = "simulation"
disk_size = "1MiB"
memory = "256KiB"
block_size = [4096, 8192]
workload = ["idle", "web"]
"""


@pytest.mark.real
@pytest.mark.timeout(900)
def test_nothing_is_lost_or_counted_twice_when_a_worker_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(MATRIX)
    script = Path(__file__).with_name("dask_sweep.py")
    done = subprocess.run(
        [sys.executable, str(script), str(file)], capture_output=True, text=True, timeout=380
    )
    assert "killed 1 done 12 failed 0" in done.stdout, done.stdout + done.stderr
    with open_database(tmp_path / "a.sqlite") as database:
        rows = load_runs(database)
    counts = Counter((row.cell, row.repetition) for row in rows)
    assert len(counts) == 12
    assert set(counts.values()) == {1}
    assert {row.outcome for row in rows} == {"done"}


def test_a_cluster_needs_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.toml"
    file.write_text(MATRIX)
    assert main(["experiment", "run", str(file), "--executor", "dask"]) == 2
    assert "--scheduler" in capsys.readouterr().err
    assert main(["experiment", "run", str(file), "--scheduler", "tcp://x:1"]) == 2
    assert not (tmp_path / "a.sqlite").exists()
