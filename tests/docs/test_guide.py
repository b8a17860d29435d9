"""The plugin author's guide: its code runs, its plugins keep their contracts and stay short."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from pages import DOCS, Block, blocks, title
from test_queues import TestQueues

from vmferry import api
from vmferry.api import Guest, Options, Summary
from vmferry.cli.scaffold import SAMPLES
from vmferry.cli.scaffold.samples.test_tracker import TestScanTracker
from vmferry.cli.scaffold.samples.volume import PlainDriver
from vmferry.errors import Veto
from vmferry.plugins import HOOK_GROUP, KINDS

__all__ = ["TestQueues", "TestScanTracker"]

PAGES = {
    title(page)
    for page in (DOCS / "plugins.md", DOCS / "hooks.md", *sorted((DOCS / "guide").glob("*.md")))
}
BLOCKS = [block for block in blocks() if block.page in PAGES]
PYTHON = [block for block in BLOCKS if block.language == "python"]
TOML = [block for block in BLOCKS if block.language == "toml"]
INCLUDED = [block for block in BLOCKS if block.language.startswith("{literalinclude}")]


def words(block: Block) -> str:
    return f"{block.page}: {block.text.strip().splitlines()[0]}"


def surroundings() -> dict[str, Any]:
    """What the pages take for granted."""
    public = {name: getattr(api, name) for name in api.__all__}
    more = {"Annotated": Annotated, "Literal": Literal, "msgspec": msgspec}
    stubs = {"shop_is_open": lambda: True, "post": [].append}
    return {**public, **more, **stubs, "PlainDriver": PlainDriver}


@pytest.mark.parametrize("block", PYTHON, ids=words)
def test_python_runs(block: Block) -> None:
    known = surroundings()
    exec(compile(block.text, block.page, "exec"), known)
    made = [
        value
        for value in known.values()
        if isinstance(value, type) and issubclass(value, Options) and value.__module__ == "builtins"
    ]
    assert all(option() for option in made)


def test_the_hook_does_what_the_page_says() -> None:
    (block,) = (block for block in PYTHON if "class Office" in block.text)
    posted: list[str] = []
    known = {**surroundings(), "post": posted.append}
    exec(compile(block.text, block.page, "exec"), known)
    office = known["Office"]()
    with pytest.raises(Veto, match="till-3: not while the shop is open"):
        office.vmferry_before_switch(Guest(name="till-3", hypervisor="process"))
    office.vmferry_finished(
        Summary(job="j", role="source", guest="web1", outcome="done", owner="destination")
    )
    assert posted == ["web1: done, downtime None s"]


@pytest.mark.parametrize("block", TOML, ids=words)
def test_toml_is_toml_and_names_groups_that_there_are(block: Block) -> None:
    project = tomllib.loads(block.text).get("project", {})
    groups = {kind.group for kind in KINDS.values()} | {HOOK_GROUP}
    assert set(project.get("entry-points", {})) <= groups


@pytest.mark.parametrize("block", INCLUDED, ids=lambda block: block.language.split()[1])
def test_what_is_included_is_there(block: Block) -> None:
    page = DOCS.parent / block.page
    assert (page.parent / block.language.split()[1]).resolve().is_file()
    assert block.text == ":language: python\n"


def test_there_is_something_of_each() -> None:
    assert len(PYTHON) >= 4
    assert len(TOML) >= 4
    assert len(INCLUDED) >= 6


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor a comment nor of a docstring."""
    text = path.read_text()
    strings = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return sum(
        bool(line.strip())
        and not line.strip().startswith("#")
        and not any(number in lines for lines in strings)
        for number, line in enumerate(text.splitlines(), 1)
    )


def test_the_tracker_and_the_transport_are_short() -> None:
    tracker = DOCS.parent / "core/vmferry/cli/scaffold/samples/tracker.py"
    assert len(tracker.read_text().splitlines()) < 60
    assert code_lines(DOCS / "examples" / "queues.py") < 60


def test_there_is_a_life_of_every_kind() -> None:
    text = (DOCS / "guide" / "lifecycles.md").read_text()
    lives = re.findall(r"^## An? (\w+)\n+```text$", text, re.MULTILINE)
    assert lives == [*KINDS, "hook"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trial"])
def test_lives_name_every_call_of_the_contract(kind: str) -> None:
    text = (DOCS / "guide" / "lifecycles.md").read_text()
    name = KINDS[kind].base.__name__
    life = text.partition(f"## A {kind}\n")[2].partition("\n## ")[0]
    parts = {
        "volume": ["VolumeDriver"],
        "tracker": ["Tracker"],
        "transport": ["Transport", "Listener", "Lane"],
        "hypervisor": ["Departure", "Arrival"],
    }[kind]
    assert name in parts or kind == "hypervisor"
    for part in parts:
        methods = getattr(api, part).__abstractmethods__ - {"address"}
        missing = {method for method in methods if not re.search(rf"\b{method}\b", life)}
        assert not missing, f"{part}: {missing}"


def test_the_kinds_that_can_be_written_are_named() -> None:
    text = (DOCS / "guide" / "packaging.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("KIND is "))
    named = re.findall(r"`(\w+)`", line.partition(".")[0])
    assert sorted(named) == sorted(SAMPLES)
