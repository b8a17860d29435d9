"""Child processes are heard and ended; what a killed run leaves is found and removed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from vmferry.errors import InputError
from vmferry.experiments.children import Child, ChildFailed
from vmferry.experiments.leftovers import clean, remove_abandoned, run_folder

SAYS = "import json, sys, time; print(json.dumps({'event': 'x', 'n': 1}), flush=True);"


def child(script: str, heard: list[dict[str, Any]]) -> Child:
    return Child([sys.executable, "-c", script], heard.append, "the child")


async def test_a_child_is_heard_to_its_end() -> None:
    heard: list[dict[str, Any]] = []
    async with child(SAYS + "print('no json')", heard) as process:
        assert (await process.until(lambda event: event["n"] == 1, 60))["event"] == "x"
        await process.succeeded()
    assert heard == [{"event": "x", "n": 1}]


async def test_a_child_that_fails_is_quoted() -> None:
    async with child("import sys; sys.exit('the disk is on fire')", []) as process:
        with pytest.raises(ChildFailed, match="code 1: the disk is on fire"):
            await process.succeeded()
        with pytest.raises(ChildFailed, match="ended too early: the disk is on fire"):
            await process.until(lambda event: True, 60)


async def test_a_child_that_says_nothing_is_ended() -> None:
    async with child("import time; time.sleep(600)", []) as process:
        with pytest.raises(ChildFailed, match="silent"):
            await process.until(lambda event: True, 0.01)
        pid = process._process.pid
    assert not Path(f"/proc/{pid}").exists()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="x-") as folder:
        yield Path(folder)


@contextmanager
def sleeper(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has begun: before that, its command line may not be there yet."""
    script = "import sys, time; print('awake', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"awake\n"
            yield process
        finally:
            process.kill()


def test_a_runs_processes_end_with_it(short: Path) -> None:
    with sleeper(short) as other:
        with ExitStack() as stack:
            with run_folder(str(short)) as folder:
                (folder / "disk").touch()
                process = stack.enter_context(sleeper(folder / "disk"))
            assert process.wait(60) == -9
        assert not folder.exists()
        assert other.poll() is None


def test_only_what_nobody_owns_is_removed(short: Path) -> None:
    gone = short / "vmx-000000000000"
    gone.mkdir()
    (gone / "owner").write_text(f"{os.getpid()} 1")
    unmarked = short / "vmx-111111111111"
    unmarked.mkdir()
    with sleeper(gone) as process, run_folder(str(short)) as mine:
        assert remove_abandoned(str(short)) == [gone]
        assert process.wait(60) == -9
        assert mine.exists()
        assert unmarked.exists()
    clean(unmarked)
    assert list(short.iterdir()) == []


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too long"), run_folder(str(tmp_path / ("x" * 60))):
        pass
