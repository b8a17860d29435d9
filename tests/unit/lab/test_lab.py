from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmferry_lab import commands, requirements
from vmferry_lab.cli import main
from vmferry_lab.errors import CommandFailed, LabError, LabNotUp, Missing
from vmferry_lab.install import Environment
from vmferry_lab.lab import Lab, default_folder
from vmferry_lab.machine import Machine


def test_missing_programs_are_named_with_what_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match=r"mmdebstrap.*apt install .*qemu-system-x86"):
        Lab(tmp_path / "lab").up()
    assert not (tmp_path / "lab/run").exists()


@pytest.fixture
def all_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(requirements, "_namespaces", lambda: True)


@pytest.mark.usefixtures("all_programs")
def test_all_programs_and_memory_there_is_no_complaint(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   16000000 kB\n")
    requirements.check(tmp_path / "meminfo")


@pytest.mark.usefixtures("all_programs")
def test_too_little_memory_is_said_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   1048576 kB\n")
    with pytest.raises(Missing, match=r"6\.5 GiB of memory are needed, 1\.0 GiB are free"):
        requirements.check(tmp_path / "meminfo")


def test_a_laboratory_that_is_not_up_says_so(tmp_path: Path) -> None:
    with pytest.raises(LabNotUp, match="no laboratory is up in"):
        Lab(tmp_path).hosts()
    assert not Lab(tmp_path).is_up()


def test_down_may_be_called_on_nothing_and_makes_nothing(tmp_path: Path) -> None:
    Lab(tmp_path / "lab").down()
    assert not (tmp_path / "lab").exists()


def _state(folder: Path) -> Lab:
    (folder / "run").mkdir()
    (folder / "run/lab.json").write_text(json.dumps({"ports": {"hosta": 2201, "hostb": 2202}}))
    return Lab(folder)


def test_what_it_was_brought_up_with_is_known_to_later_commands(tmp_path: Path) -> None:
    lab = _state(tmp_path)
    assert lab.flavours == frozenset()
    state = {"ports": {}, "flavours": ["drbd", "storage"]}
    (tmp_path / "run/lab.json").write_text(json.dumps(state))
    assert lab.flavours == {"drbd", "storage"}


def test_an_unknown_host_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no host hostx; there are hosta, hostb"):
        _state(tmp_path).host("hostx")


def test_down_removes_what_exists_only_while_hosts_run(tmp_path: Path) -> None:
    lab = _state(tmp_path)
    for kept in ("cache", "logs", "keys"):
        (tmp_path / kept).mkdir()
    lab.down()
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "keys", "lock", "logs"}
    lab.down(purge=True)
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_a_number_that_another_process_got_is_not_taken_for_the_host(tmp_path: Path) -> None:
    (tmp_path / "hosta.pid").write_text("1\n")
    machine = Machine("hosta", tmp_path, tmp_path / "log")
    assert machine.pid is None
    machine.power_off()


def test_ssh_stays_off_the_users_own_files(tmp_path: Path) -> None:
    words = _state(tmp_path).host("hosta").ssh.argv("true")
    assert words[1:3] == ["-F", "none"]
    assert "UserKnownHostsFile=../keys/known_hosts" in words
    assert words[-1] == "true"


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMFERRY_LAB", "/somewhere")
    assert default_folder() == Path("/somewhere")
    monkeypatch.delenv("VMFERRY_LAB")
    assert default_folder() == Path(".lab")


def test_commands_fail_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--state-dir", str(tmp_path), "status"])
    assert result.exit_code == 1
    assert result.output == f"Error: no laboratory is up in {tmp_path}; `up` boots one\n"


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(CommandFailed, match="ended with code 3: sorry") as failed:
        commands.run(["sh", "-c", "echo sorry >&2; exit 3"])
    assert failed.value.code == 3


def test_a_missing_program_is_named() -> None:
    with pytest.raises(Missing, match="no-such-program"):
        commands.run(["no-such-program"])


def test_the_environment_changes_with_the_dependencies(tmp_path: Path) -> None:
    keys = []
    for number, wanted in enumerate(("click", "rich")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "pyproject.toml").write_text(f'[project]\ndependencies = ["{wanted}"]\n')
        keys.append(Environment(folder, tmp_path).key)
    assert keys[0] != keys[1]


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is no checkout of vmferry"):
        _ = Environment(tmp_path, tmp_path).key
