from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest

import vmferry
from vmferry.api import Finding
from vmferry.cli import main
from vmferry.cli.app import migrate
from vmferry.cli.exits import MEANINGS, ExitCode, exit_code_of
from vmferry.cli.lazy import COMMANDS, LazyCommand, LazyGroup
from vmferry.errors import (
    CheckFailed,
    ConnectionLost,
    DigestMismatch,
    GuestNotFound,
    HypervisorError,
    InputError,
    MigrationError,
    OptionError,
    PeerError,
    PluginError,
    PluginNotFound,
    Veto,
    VolumeBusy,
    VolumeError,
    VolumeMissing,
)

MIGRATE = [sys.executable, "-m", "vmferry"]
Raise = Any


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Raise:
    """Run ``migrate fail``, a command that raises the given error, or returns it."""

    def run(result: object, *options: str) -> int:
        @click.command()
        def fail() -> object:
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(migrate, "get_command", lambda context, name: fail)
        return main([*options, "fail"])

    return run


def test_without_arguments_it_shows_its_help_and_counts_as_wrong_usage(capsys: Any) -> None:
    assert main([]) == ExitCode.USAGE
    assert "Usage: migrate" in capsys.readouterr().err


def test_help_explains_every_exit_code(capsys: Any) -> None:
    assert main(["--help"]) == ExitCode.OK
    shown = " ".join(capsys.readouterr().out.split())
    for code in ExitCode:
        assert f"{int(code)} {MEANINGS[code]}" in shown


def test_help_lists_the_commands_there_are(capsys: Any) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    context = click.Context(migrate)
    for name in migrate.list_commands(context):
        command = migrate.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str(100) == COMMANDS[name].help
        assert COMMANDS[name].help in shown


def test_a_command_whose_module_is_absent_is_not_listed() -> None:
    class Small(LazyGroup):
        table: ClassVar = {"gone": LazyCommand("vmferry.cli.no_such_module", "gone", "Gone.")}

    group = Small("small")
    assert group.list_commands(click.Context(group)) == []
    assert group.get_command(click.Context(group), "gone") is None


def test_help_is_quick_because_it_imports_little() -> None:
    code = (
        "import sys; from vmferry.cli import main; main(['--help']); "
        "print({'numpy', 'stevedore', 'rich', 'pluggy', 'msgspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_version(capsys: Any) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"migrate (vmferry) {vmferry.__version__}\n"


@pytest.mark.parametrize("arguments", [["--nonsense"], ["nonsense"], ["plugins", "--kind", "x"]])
def test_wrong_usage_is_one_line_and_a_hint(arguments: list[str], capsys: Any) -> None:
    assert main(arguments) == ExitCode.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("migrate: error: ")
    assert lines[1].startswith("Try 'migrate")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (OptionError("x"), 2),
        (PluginNotFound("tracker", "x", []), 2),
        (GuestNotFound("x", []), 2),
        (VolumeMissing("x"), 2),
        (VolumeBusy("x"), 2),
        (VolumeError("x"), 1),
        (PluginError("x"), 1),
        (HypervisorError("x"), 1),
        (ValueError("x"), 1),
        (CheckFailed([]), 3),
        (Veto("x"), 4),
        (MigrationError("x", phase="stop", guest="source"), 4),
        (MigrationError("x", phase="pull", guest="destination"), 5),
        (MigrationError("x", phase="stop", guest="unknown"), 1),
        (ConnectionLost("x"), 7),
        (DigestMismatch("x"), 7),
        (PeerError("x"), 7),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, code: int, failing: Raise) -> None:
    assert exit_code_of(error) == code
    assert failing(error) == code


def test_an_error_is_one_line_without_traceback(failing: Raise, capsys: Any) -> None:
    failing(InputError("no disk named 'x'"))
    assert capsys.readouterr() == ("", "migrate: error: no disk named 'x'\n")


def test_an_unexpected_error_says_how_to_see_more(failing: Raise, capsys: Any) -> None:
    assert failing(ZeroDivisionError("by nothing")) == ExitCode.FAILURE
    assert capsys.readouterr().err == (
        "migrate: error: unexpected ZeroDivisionError: by nothing (migrate -vv shows where)\n"
    )
    failing(ZeroDivisionError("by nothing"), "-v")
    assert "Traceback" not in capsys.readouterr().err
    failing(ZeroDivisionError("by nothing"), "-vv")
    assert "Traceback" in capsys.readouterr().err


def test_the_log_file_has_the_traceback_and_stderr_has_not(
    failing: Raise, capsys: Any, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    failing(InputError("wrong"), "--log-file", str(path))
    assert "Traceback" not in capsys.readouterr().err
    assert "InputError: wrong" in path.read_text()
    assert failing(None, "--log-file", str(tmp_path / "no" / "log")) == ExitCode.USAGE
    assert "cannot write the log file" in capsys.readouterr().err


def test_plugins_are_heard_and_libraries_from_warnings_on(
    failing: Raise, capsys: Any, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    failing(None, "-v", "--log-file", str(path))
    for name in ("vmferry_transports.ssh", "somebodys_plugin", "asyncio"):
        logging.getLogger(name).info("by %s", name)
        logging.getLogger(name).warning("of %s", name)
    said = capsys.readouterr().err
    for name in ("vmferry_transports.ssh", "somebodys_plugin"):
        assert f"migrate: INFO: by {name}" in said
        assert f"migrate: WARNING: of {name}" in said
        assert f"{name}: by {name}" in path.read_text()
    assert "by asyncio" not in said
    assert "of asyncio" in said


def test_a_migrations_error_names_the_phase_once(failing: Raise, capsys: Any) -> None:
    for text in ("nothing moved", "stop: nothing moved"):
        failing(MigrationError(text, phase="stop", guest="source"))
        assert capsys.readouterr().err == "migrate: error: in stop: nothing moved\n"


def test_findings_are_listed_gravest_first_with_remedies(failing: Raise, capsys: Any) -> None:
    findings = [
        Finding.info("emulated", "zeroes are emulated"),
        Finding.error("disk-exists", "disk0 exists", "remove it"),
        Finding.error("memory", "too little memory"),
    ]
    assert failing(CheckFailed(findings)) == ExitCode.REFUSED
    assert capsys.readouterr().err.splitlines() == [
        "migrate: error: the check found 2 reasons not to start",
        "  error   disk0 exists [disk-exists]",
        "          remove it",
        "  error   too little memory [memory]",
        "  info    zeroes are emulated [emulated]",
    ]


def test_a_group_of_errors_is_shown_by_the_one_that_means_something(
    failing: Raise, capsys: Any
) -> None:
    inner = ExceptionGroup("inner", [PeerError("the other host has no space")])
    assert failing(ExceptionGroup("outer", [ValueError("noise"), inner])) == ExitCode.PEER
    assert capsys.readouterr().err == "migrate: error: the other host has no space\n"


def test_a_command_may_return_its_exit_code(failing: Raise) -> None:
    assert failing(ExitCode.DATA) == 6
    assert failing(None) == 0


def test_interruption_is_told_apart(failing: Raise, capsys: Any) -> None:
    assert failing(KeyboardInterrupt()) == ExitCode.INTERRUPTED
    assert "migrate: interrupted" in capsys.readouterr().err


UNFLUSHED = """
import sys, click
from vmferry.cli import app
command = click.Command("x", callback=lambda: sys.stdout.write("x") and None)
app.migrate.get_command = lambda context, name: command
sys.exit(app.run_command_line(["x"]))
"""


@pytest.mark.parametrize(
    "command", [[*MIGRATE, "plugins", "--json"], [sys.executable, "-c", UNFLUSHED]]
)
def test_a_reader_that_went_away_is_no_traceback(command: list[str]) -> None:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == ExitCode.FAILURE


def test_the_module_is_the_console_script() -> None:
    done = subprocess.run([*MIGRATE, "plugins", "--json"], capture_output=True, check=True)
    assert {plugin["kind"] for plugin in json.loads(done.stdout)} >= {"volume", "tracker"}
    done = subprocess.run([*MIGRATE, "nonsense"], capture_output=True)
    assert done.returncode == ExitCode.USAGE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: Any) -> None:
    assert main(["completion", shell]) == 0
    assert f"_MIGRATE_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected", "unexpected"),
    [
        ("migrate plu", "plain,plugins", "completion"),
        ("migrate plugins show t", "plain,tcp", "process"),
        ("migrate plugins show --kind tracker e", "plain,export", "tcp"),
    ],
)
def test_the_shell_completes_commands_and_plugins(
    words: str, expected: str, unexpected: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("_MIGRATE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    out = capsys.readouterr().out.splitlines()
    assert expected in out
    assert unexpected not in "".join(out)
