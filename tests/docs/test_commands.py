"""What the documentation tells people to type is understood by the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from pages import DOCS, Line, lines, rows, section

from vmferry.cli import main
from vmferry.cli.app import migrate
from vmferry.cli.exits import MEANINGS
from vmferry.cli.lazy import COMMANDS
from vmferry.cli.settings import parse_option
from vmferry.errors import OptionError, PluginNotFound
from vmferry.plugins import ANY_PLUGIN, KINDS, load, names

LINES = lines()
OPERATOR = DOCS / "operator.md"


def command(name: str) -> click.Command:
    found = migrate.get_command(click.Context(migrate), name)
    assert found is not None, name
    return found


def understand(group: click.Command, arguments: list[str], parent: click.Context | None) -> None:
    """Parse and convert as click does, and call nothing."""
    if not isinstance(group, click.Group):
        group.make_context(group.name, arguments, parent=parent)
        return
    known = group.list_commands(click.Context(group))
    place = next((i for i, word in enumerate(arguments) if word in known), len(arguments))
    context = group.make_context(group.name, arguments[:place], parent=parent)
    if place < len(arguments):
        found = group.get_command(context, arguments[place])
        assert found is not None
        understand(found, arguments[place + 1 :], context)


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in examples need not exist here."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))


def test_there_are_examples_of_every_command() -> None:
    used = {word for line in LINES for word in line.arguments[:1]}
    assert used == set(COMMANDS)


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize("line", LINES, ids=str)
def test_command_line_is_understood(line: Line) -> None:
    understand(migrate, list(line.arguments), None)


def plugin_options() -> list[tuple[str, str]]:
    return [
        (word.removeprefix("--").removesuffix("-opt"), line.arguments[i + 1])
        for line in LINES
        for i, word in enumerate(line.arguments)
        if word.endswith("-opt")
    ]


def takes(kind: str, name: str, key: str, value: str) -> bool:
    try:
        load(kind, name, {key: value})
    except (OptionError, PluginNotFound):
        return False
    return True


@pytest.mark.parametrize(("kind", "text"), sorted(set(plugin_options())))
def test_plugin_option_exists(kind: str, text: str) -> None:
    name, key, value = parse_option(kind, text)
    assert kind in KINDS
    wanted = names(kind) if name == ANY_PLUGIN else [name]
    assert any(takes(kind, one, key, value) for one in wanted), text


def long_names(cli: click.Command) -> dict[str, click.Option]:
    return {
        name: option
        for option in cli.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_operators_guide(name: str) -> None:
    documented = " ".join(row[0] for row in rows(section(OPERATOR, f"`migrate {name}`")))
    wanted = set(long_names(command(name)))
    found = {word.strip("`,").partition(" ")[0] for word in documented.split() if "--" in word}
    assert found == wanted


@pytest.mark.parametrize("name", ["run", "serve", "demo", "export"])
def test_documented_defaults_are_right(name: str) -> None:
    options = long_names(command(name))
    checked = 0
    for first, default, *_ in rows(section(OPERATOR, f"`migrate {name}`")):
        option = options.get(first.strip("`").partition(" ")[0])
        shown: Any = option and option.show_default
        if option is None or "," in first or not shown:
            continue
        assert default.strip("`") == (shown if isinstance(shown, str) else str(option.default))
        checked += 1
    assert checked


def test_exit_codes_are_those_of_the_program() -> None:
    documented = {row[0]: row[1] for row in rows(section(OPERATOR, "Exit codes"))}
    assert documented == {str(int(code)): text for code, text in MEANINGS.items()}


@pytest.mark.parametrize("line", [line for line in LINES if line.mark == "run"], ids=str)
def test_quick_examples_work(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(line.arguments)) == 0
    assert capsys.readouterr().out


@pytest.mark.real
@pytest.mark.parametrize("line", [line for line in LINES if line.mark == "real"], ids=str)
def test_demo_examples_work(line: Line) -> None:
    arguments = [*line.arguments]
    if "--disk-size" not in arguments:
        arguments += ["--disk-size", "64MiB"]
    process = subprocess.run(
        [sys.executable, "-m", "vmferry", *arguments], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert "nothing was lost" in process.stdout


def test_some_examples_are_run() -> None:
    marks = [line.mark for line in LINES]
    assert marks.count("run") >= 4
    assert marks.count("real") >= 3
