"""The documentation is complete, and its links lead somewhere."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import msgspec
import pytest

from vmferry import __version__, api
from vmferry.api import Disk, Finding, Guest
from vmferry.errors import __all__ as error_names
from vmferry.units import format_size
from vmferry.wire.codec import MAX_HEAD
from vmferry.wire.link import LIMITS
from vmferry.wire.messages import MESSAGES, PROTOCOL_NEWEST, AcceptedDisk

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from pages import DOCS, PAGES, ROOT, rows, section, title

PROTOCOL = DOCS / "protocol.md"
STRUCTS = [*MESSAGES, Guest, Disk, AcceptedDisk, Finding]
MODULES = re.findall(
    r"^\.\. automodule:: (\S+)\n   :members:$",
    "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md"))),
    re.MULTILINE,
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.*)$", re.MULTILINE)
_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """As GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(heading) for heading in _HEADING.findall(page.read_text())}


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_field_of_every_message_is_documented(struct: type[msgspec.Struct]) -> None:
    text = section(PROTOCOL, f"`{struct.__name__}`")
    assert [row[0] for row in rows(text)] == [f"`{name}`" for name in struct.__struct_fields__]
    if not struct.__struct_fields__:
        assert "No fields." in text


@pytest.mark.parametrize("struct", [*MESSAGES, AcceptedDisk, Finding], ids=lambda s: s.__name__)
def test_fields_that_need_not_be_sent_are_marked(struct: type[msgspec.Struct]) -> None:
    types = {row[0].strip("`"): row[1] for row in rows(section(PROTOCOL, f"`{struct.__name__}`"))}
    marked = {name for name, text in types.items() if "default" in text}
    fields = {field.name for field in msgspec.structs.fields(struct) if not field.required}
    assert marked == fields


def test_no_message_is_documented_that_does_not_exist() -> None:
    headings = re.findall(r"^### `(\w+)`$", PROTOCOL.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(struct.__name__ for struct in STRUCTS)


def test_protocol_version_and_limits_are_right() -> None:
    text = PROTOCOL.read_text()
    assert f"\nVersion {PROTOCOL_NEWEST}." in text
    limits = dict(row[:2] for row in rows(section(PROTOCOL, "Limits")))
    assert limits["a head"] == format_size(MAX_HEAD)
    assert limits["a payload"] == format_size(LIMITS.payload)


@pytest.mark.parametrize("name", api.__all__)
def test_every_public_name_has_a_page(name: str) -> None:
    assert any(name in import_module(module).__all__ for module in MODULES)


def test_errors_have_a_page() -> None:
    assert "vmferry.errors" in MODULES
    for name in error_names:
        assert name in (import_module("vmferry.errors").__doc__ or "")


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if "://" in target:
            continue
        path, _, part = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.is_file(), target
        assert not part or part in anchors(other), target


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents], ids=title)
def test_every_page_is_in_a_table_of_contents(page: Path) -> None:
    listed = {DOCS / "index.md"}
    for index in PAGES:
        for tree in _TOCTREE.findall(index.read_text()):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(index.parent / f"{entry}.md").resolve() for entry in entries}
    assert page in listed


def test_paths_of_source_files_exist() -> None:
    roots = [ROOT, ROOT / "core" / "vmferry", ROOT / "core" / "vmferry" / "engine"]
    roots += [ROOT / "core" / "vmferry" / name for name in ("wire", "export", "cli", "dirtymap")]
    for page in PAGES:
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
            if name.startswith("test_") or name == "guest.py":
                continue
            assert any((root / name).is_file() for root in roots), f"{title(page)}: {name}"


def test_changelog_has_this_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
