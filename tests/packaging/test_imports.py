"""Modules are imported by the name they are installed under, never through the repository."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("core", "plugins", "tests", "benchmarks", "docs")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def through_the_repository(source: str) -> list[str]:
    """Names that would make a second copy of every class."""
    return [name for name in imported(ast.parse(source)) if name.split(".")[0] in FOLDERS]


def test_no_module_imports_through_the_repository(repository: Path) -> None:
    files = [path for folder in FOLDERS for path in (repository / folder).rglob("*.py")]
    assert len(files) > 20
    found = {
        str(path): names
        for path in files
        if "_build" not in path.parts and (names := through_the_repository(path.read_text()))
    }
    assert found == {}


def test_the_search_finds_what_is_banned() -> None:
    source = "import core.vmferry\nfrom plugins.volumes import x\nimport vmferry.plugins\n"
    assert through_the_repository(source) == ["core.vmferry", "plugins.volumes"]
