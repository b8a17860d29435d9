"""The laboratory's page tells people what is so."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from vmferry_lab.cli import main
from vmferry_lab.guestimage import GUEST
from vmferry_lab.recipe import FLAVOURS
from vmferry_lab.requirements import PROGRAMS

PAGE = (Path(__file__).parents[3] / "docs/lab.md").read_text()
LINES = re.findall(r"^\$ python -m vmferry_lab (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_page_is_understood(line: str) -> None:
    name, *arguments = line.split()
    command = main.get_command(click.Context(main), name)
    assert command is not None
    command.make_context(name, arguments)


def test_every_command_is_on_the_page() -> None:
    described = set(re.findall(r"^\| `(\w+)", PAGE, re.MULTILINE))
    assert set(main.commands) <= described


def test_every_flavour_is_on_the_page() -> None:
    assert all(f"`{name}`" in PAGE for name in FLAVOURS if name != "storage")


def test_every_option_of_the_writer_is_on_the_page() -> None:
    source = (GUEST / "options.c").read_text()
    options = set(re.findall(r'(?:number|value)\("(\w+)", "', source)) - {"disks"}
    described = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert options
    assert options <= described


def test_the_packages_to_install_are_those_that_are_asked_for() -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith("# apt install"))
    wanted = {name for names in PROGRAMS.values() for name in names.split()}
    assert wanted - set(line.split()) == {"tar", "util-linux"}
