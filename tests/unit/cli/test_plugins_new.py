"""``migrate plugins new`` writes a project whose tests pass as they stand, or nothing at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vmferry.cli import main
from vmferry.cli.scaffold import SAMPLES, render
from vmferry.cli.scaffold import write as writing
from vmferry.errors import InputError
from vmferry.plugins import HOOK, KINDS
from vmferry.plugins.kinds import group_of

NAME = "tape-robot"


def new(kind: str, folder: Path, name: str = NAME) -> int:
    return main(["plugins", "new", kind, name, "--folder", str(folder)])


def test_there_is_a_sample_of_every_kind() -> None:
    assert set(SAMPLES) == {*KINDS, HOOK} - {"trial"}


@pytest.mark.real
@pytest.mark.parametrize("kind", SAMPLES)
def test_its_tests_run_at_once(kind: str, tmp_path: Path) -> None:
    assert new(kind, tmp_path / "project") == 0
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        command, cwd=tmp_path / "project", env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(re.findall(r"(\d+) passed", ran.stdout)[-1]) >= 5


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_entry_point_leads_to_the_plugin(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert new(kind, tmp_path / "project", f"{NAME}-{kind}") == 0
    project = tomllib.loads((tmp_path / "project" / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"][group_of(kind)].items()
    assert (project["name"], name) == (f"vmferry-{NAME}-{kind}", f"{NAME}-{kind}")
    monkeypatch.syspath_prepend(str(tmp_path / "project" / "src"))
    module, _, attribute = target.partition(":")
    assert getattr(__import__(module, fromlist=[attribute]), attribute).name == name


@pytest.mark.parametrize("kind", SAMPLES)
def test_nothing_of_the_sample_is_left_but_its_idea(kind: str) -> None:
    sample = SAMPLES[kind]
    words = re.compile(rf"\b({sample.word}|{sample.prefix}[A-Z]\w*|{sample.word.upper()})\b")
    for path, text in render(kind, NAME).files.items():
        assert not words.search(text), path
        assert "scaffold" not in text, path


@pytest.mark.parametrize(
    "name", ["", "Tape", "tape_robot", "1tape", "tape-", "-tape", "tape robot", "../tape", "t" * 41]
)
def test_a_name_that_cannot_be_is_refused(name: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["plugins", "new", "volume", "--folder", str(tmp_path / "p"), "--", name]) == 2
    assert f"{name!r} cannot be a plugin's name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert new("volume", tmp_path / "project", "raw") == 2
    assert "has a volume plugin 'raw' already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_what_is_there_is_left_alone(there: str, tmp_path: Path, capsys: Any) -> None:
    place = tmp_path / "project"
    make = {"folder": place.mkdir, "file": place.touch, "link": lambda: place.symlink_to("gone")}
    make[there]()
    assert new("volume", place) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_the_folder_above_must_be_there(tmp_path: Path, capsys: Any) -> None:
    assert new("volume", tmp_path / "none" / "project") == 2
    assert "none is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left"):
        writing(render("hook", NAME), tmp_path / "project")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_is_a_usage_error(tmp_path: Path, capsys: Any) -> None:
    assert new("floppy", tmp_path / "project") == 2
    assert "'floppy' is not one of 'volume'" in capsys.readouterr().err
    with pytest.raises(InputError, match="no sample of kind 'floppy'"):
        render("floppy", NAME)


def test_without_a_folder_it_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "hook", NAME]) == 0
    assert f"cd vmferry-{NAME}" in capsys.readouterr().out
    assert (tmp_path / f"vmferry-{NAME}" / "pyproject.toml").is_file()


@pytest.mark.parametrize("file", ["src/{}/transport.py", "tests/test_transport.py"])
def test_the_example_distributions_transport_is_what_the_command_writes(file: str) -> None:
    """But for the order of imports: the package is this repository's in one of them."""
    example = Path(__file__).parents[3] / "examples" / "vmferry-harbour"
    written = render("transport", "pontoon").files[file.format("vmferry_pontoon")]
    there = (example / file.format("vmferry_harbour")).read_text(encoding="utf-8")
    here = written.replace("vmferry_pontoon", "vmferry_harbour")
    assert sorted(here.splitlines()) == sorted(there.splitlines())
