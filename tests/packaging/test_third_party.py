"""A plugin of another distribution is found as ours are, and a broken one harms nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "vmferry-punchcards"
version = "3.1"
dependencies = ["vmferry"]

[project.entry-points."vmferry.volumes"]
punchcards = "punchcards:CardDriver"
jammed = "punchcards.jammed:CardDriver"

[project.entry-points."vmferry.hooks"]
bell = "punchcards:Bell"

[tool.hatch.build.targets.wheel]
packages = ["punchcards"]
"""

SOURCE = """
from typing import Annotated
import msgspec
from vmferry.api import Grade, Options, VolumeCapabilities, VolumeDriver, hookimpl

class CardOptions(Options, frozen=True, kw_only=True):
    deck: Annotated[int, msgspec.Meta(description="size", extra={"unit": "bytes"})] = 960

class CardDriver(VolumeDriver[CardOptions]):
    api_version = 1
    name = "punchcards"
    summary = "disks on punched cards"
    options_type = CardOptions
    capabilities = VolumeCapabilities(holes=Grade.NATIVE)
    async def probe(self, location): raise NotImplementedError
    async def open(self, location, access): raise NotImplementedError
    async def check_create(self, location, geometry): raise NotImplementedError
    async def create(self, location, geometry): raise NotImplementedError
    async def remove(self, location): raise NotImplementedError

class Bell:
    @hookimpl
    def vmferry_finished(self): ...
"""


@pytest.fixture(scope="module")
def site(run_python: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the other distribution installed into it."""
    folder = tmp_path_factory.mktemp("punchcards")
    (folder / "punchcards").mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "punchcards" / "__init__.py").write_text(SOURCE)
    (folder / "punchcards" / "jammed.py").write_text("import no_such_card_reader\n")
    site = folder / "site"
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run_python("-m", "pip", "install", *options, "--target", str(site), str(folder), cwd=folder)
    return site


@pytest.fixture(scope="module")
def plugins(site: Path, run_python: Any) -> dict[tuple[str, str], Any]:
    shown = run_python("-m", "vmferry", "plugins", "--json", cwd=site.parent, path=site).stdout
    return {(plugin["kind"], plugin["name"]): plugin for plugin in json.loads(shown)}


def test_it_is_listed_with_its_distribution(plugins: dict[tuple[str, str], Any]) -> None:
    card = plugins["volume", "punchcards"]
    assert (card["distribution"], card["version"]) == ("vmferry-punchcards", "3.1")
    assert card["summary"] == "disks on punched cards"
    assert card["capabilities"]["holes"] == "native"
    assert card["error"] == ""
    assert plugins["hook", "bell"]["capabilities"] == {"finished": "observer"}


def test_a_broken_one_says_why_and_hides_no_other(plugins: dict[tuple[str, str], Any]) -> None:
    assert "No module named 'no_such_card_reader'" in plugins["volume", "jammed"]["error"]
    assert "vmferry-punchcards 3.1" in plugins["volume", "jammed"]["error"]
    assert plugins["volume", "raw"]["error"] == ""


def test_it_can_be_used(site: Path, run_python: Any) -> None:
    code = (
        "from vmferry.plugins import Hooks, Registry\n"
        "registry = Registry({'volume': {'punchcards': {'deck': '4k'}}})\n"
        "print(registry.volume('punchcards').options.deck, Hooks().load())\n"
    )
    shown = run_python("-c", code, cwd=site.parent, path=site).stdout
    assert shown == "4096 ['bell']\n"
