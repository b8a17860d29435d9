"""One command at a time works on a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.cli import control
from vmferry.errors import InputError


def test_a_second_command_is_refused_and_the_first_leaves_no_file(tmp_path: Path) -> None:
    with (
        control._alone("a1", tmp_path),
        pytest.raises(InputError, match="another command works on job a1"),
        control._alone("a1", tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), control._alone("a1", tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_removed_before_it_was_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / "a1.lock", control.fcntl.flock

    def ended_meanwhile(descriptor: int, how: int) -> None:
        monkeypatch.undo()
        path.unlink()
        lock(descriptor, how)

    monkeypatch.setattr(control.fcntl, "flock", ended_meanwhile)
    with control._alone("a1", tmp_path), pytest.raises(InputError), control._alone("a1", tmp_path):
        pass
