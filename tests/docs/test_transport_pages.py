"""The pages of the transports name what there is, and what is said when something fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import DOCS, ROOT, rows, section

from vmferry_transports.ssh import SshOptions
from vmferry_transports.tcp import tls

SOURCES = "\n".join(
    path.read_text()
    for folder in ("plugins/transports/vmferry_transports", "core/vmferry/cli")
    for path in sorted((ROOT / folder).rglob("*.py"))
)
PLAIN = re.sub(r'"\s*f?"', "", re.sub(r"\s+", " ", SOURCES)).replace("{_OURS}", tls._OURS)
"""The sources with the pieces of each text put together."""


def test_the_options_of_ssh_are_those_of_the_plugin() -> None:
    documented = [row[0].strip("`") for row in rows(section(DOCS / "ssh.md", "Options"))]
    assert documented == list(SshOptions.__struct_fields__)


@pytest.mark.parametrize(
    ("page", "heading"),
    [(DOCS / "ssh.md", "When it does not work"), (DOCS / "tcp.md", "When TLS fails")],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_messages_are_the_programs_own(page: Path, heading: str) -> None:
    messages = [text for row in rows(section(page, heading)) for text in row[0].split("`")[1::2]]
    assert len(messages) > 9
    for message in messages:
        for piece in re.split(r"\.\.\.|'x'", message):
            assert piece.strip(" ;:") in PLAIN, message
