"""The pages of the documentation, and what tests want to know of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]
)

_FENCE = re.compile(
    r"^(?:<!-- test: (?P<mark>\w+) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_ENDS = {"|", "&&", "||", ";", ">", ">>", "&"}


class Block(NamedTuple):
    """A fenced block of a page; ``mark`` is what ``<!-- test: MARK -->`` above it says."""

    page: str
    language: str
    mark: str
    text: str


class Line(NamedTuple):
    """A call of ``migrate`` in a page, without the command's own name."""

    page: str
    mark: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: migrate {' '.join(self.arguments)}"


def title(page: Path) -> str:
    """The page's path from the root of the project."""
    return page.relative_to(ROOT).as_posix()


def blocks() -> Iterator[Block]:
    """All fenced blocks of all pages."""
    for page in PAGES:
        for found in _FENCE.finditer(page.read_text()):
            yield Block(title(page), found["language"], found["mark"] or "", found["text"])


def _commands(text: str) -> Iterator[str]:
    """The lines of a console block that are typed; a backslash continues one."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield line[2:]


def _calls(command: str) -> Iterator[tuple[str, ...]]:
    """The calls of ``migrate`` in a command with pipes and the like."""
    words: list[str] = []
    for word in [*shlex.split(command, comments=True), ";"]:
        if word not in _ENDS:
            words.append(word)
            continue
        if words and words[0] == "migrate":
            yield tuple(words[1:])
        words = []


def lines() -> list[Line]:
    """Every call of ``migrate`` in a console block."""
    return [
        Line(block.page, block.mark, call)
        for block in blocks()
        if block.language == "console"
        for command in _commands(block.text)
        for call in _calls(command)
    ]


def section(page: Path, heading: str) -> str:
    """What is below a heading, up to the next one of any level."""
    pattern = rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)"
    found = re.search(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{title(page)} has no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, without headings."""
    table = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    rules = {number for number, row in enumerate(cells) if set(row[0]) == {"-"}}
    return [row for number, row in enumerate(cells) if not {number, number + 1} & rules]
