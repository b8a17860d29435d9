"""The example plugin of the documentation keeps its contract, and can be migrated to."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import DOCS, blocks

from vmferry.api import VolumeDriver
from vmferry.cli.scaffold.samples.test_volume import TestPlainFile
from vmferry.cli.scaffold.samples.volume import PlainDriver
from vmferry.plugins import available, load, temporary

__all__ = ["TestPlainFile"]

SAMPLES = "../core/vmferry/cli/scaffold/samples"


def test_it_is_a_plugin() -> None:
    with temporary("volume", "plainfile", PlainDriver):
        driver = load("volume", "plainfile", {"sector_size": "4k"})
        info = next(one for one in available("volume") if one.name == "plainfile")
    assert isinstance(driver, VolumeDriver)
    assert driver.options.sector_size == 4096
    assert not info.error


def test_the_page_includes_it_whole() -> None:
    included = [
        block
        for block in blocks()
        if block.language.startswith("{literalinclude}") and block.page == "docs/plugins.md"
    ]
    files = {block.language.split()[1] for block in included}
    assert files == {f"{SAMPLES}/volume.py", f"{SAMPLES}/test_volume.py"}
    for block in included:
        assert block.text == ":language: python\n"


def test_the_options_shown_are_the_plugins() -> None:
    text = (DOCS / "plugins.md").read_text()
    source = (DOCS / SAMPLES / "volume.py").read_text()
    shown = text.partition("class PlainOptions(")[2].partition("```")[0].strip()
    assert shown
    assert shown in source


@pytest.mark.parametrize("path", sorted((DOCS / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_import_the_public_modules_only(path: Path) -> None:
    public = ("vmferry.api", "vmferry.errors", "vmferry.units", "vmferry.dirtymap")
    lines = [line for line in path.read_text().splitlines() if line.startswith("from vmferry")]
    used = {line.split()[1] for line in lines} - {"vmferry"}
    modules = (line.partition(" import ")[2] for line in lines if line.split()[1] == "vmferry")
    used |= {f"vmferry.{name.strip()}" for names in modules for name in names.split(",")}
    assert used <= {*public, "vmferry.plugins", "vmferry.testing.transport"}
