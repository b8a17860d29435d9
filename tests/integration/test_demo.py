"""``migrate demo`` as a user runs it: real processes, a real connection, a real disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

Demo = Callable[..., Any]

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def leftovers(folder: Path) -> list[str]:
    return [
        " ".join(arguments)
        for arguments in map(_arguments, psutil.process_iter())
        if any(str(folder) in part for part in arguments)
    ]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_the_guest_moves_and_nothing_is_lost(demo: Demo, short_path: Path) -> None:
    env = os.environ | {"TMPDIR": str(short_path)}  # other tests have demos of their own
    result = demo("--disk-size", "128MiB", "--before", "0.3", "--after", "0.3", env=env)
    assert result.code == 0, result.errors
    phases = [e["phase"] for e in result.events if e["event"] == "phase_changed"]
    assert phases == ["handshake", "push-disk", "push-memory", "stop", "pull", "done"]
    summary = result.summary
    assert summary["owner"] == "destination"
    assert 0 < summary["guest_downtime"] < summary["downtime"] + 0.5
    assert summary["bitmap_bytes"] < 65536
    assert result.verdict["acknowledged"] > 0
    assert leftovers(short_path) == []
    assert list(short_path.iterdir()) == []


def test_a_guest_that_writes_faster_than_the_link_still_moves(demo: Demo) -> None:
    result = demo(
        "--disk-size", "16MiB", "--bandwidth", "4MiB/s", "--compression", "none", busy=True
    )
    assert result.code == 0, result.errors
    assert result.summary["pending"] > 1 << 20
    assert result.verdict["lost"] == 0


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_a_guest_that_replays_what_fio_did_moves(demo: Demo, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    job = ["--name=job", "--ioengine=psync", "--rw=randrw", "--bsrange=4k-64k", "--fsync=50"]
    place = [f"--filename={tmp_path / 'file'}", "--size=8m", f"--write_iolog={trace}"]
    subprocess.run(["fio", *job, *place], check=True, stdout=subprocess.DEVNULL, timeout=600)
    result = demo("--disk-size", "32MiB", "--trial-opt", f"trace={trace}")
    assert result.code == 0, result.errors
    assert result.verdict["acknowledged"] > 0
    assert result.verdict["bad_reads"] == 0


@pytest.mark.parametrize("block_size", ["512", "4KiB", "1MiB"])
def test_any_block_size(demo: Demo, block_size: str) -> None:
    result = demo("--disk-size", "32MiB", "--block-size", block_size, "--threshold", "0", busy=True)
    assert result.code == 0, result.errors
    assert result.verdict["wrong"] == 0


def test_everything_stays_in_the_folder_given(demo: Demo, short_path: Path) -> None:
    result = demo("--disk-size", "16MiB", "--folder", str(short_path / "here"))
    assert result.code == 0, result.errors
    assert list((short_path / "here" / "pool").glob("*.raw"))


def test_a_folder_too_long_for_sockets_is_refused(demo: Demo, tmp_path: Path) -> None:
    result = demo("--folder", str(tmp_path / ("x" * 80)))
    assert result.code == 2
    assert "too long" in result.errors
    assert not list(tmp_path.iterdir())
