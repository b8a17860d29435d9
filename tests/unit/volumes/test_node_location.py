"""Where a running QEMU's disk is, written and read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.errors import VolumeError
from vmferry_volumes.qemu.location import NodeLocation

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@settings(max_examples=50, deadline=None)
@given(NAMES, NAMES, NAMES | st.just(""))
def test_there_and_back(qmp, node, nbd):
    location = NodeLocation(qmp, node, nbd)
    assert NodeLocation.parse(str(location)) == location


def test_readable():
    assert str(NodeLocation("/run/vm 1.qmp", "#block1")) == "qmp:/run/vm%201.qmp?node=%23block1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/var/disk.raw",
        "qmp:?node=top",
        "qmp:/run/qmp",
        "qmp:/run/qmp?node=",
        "qmp:/run/qmp?node=a&node=b",
        "qmp:/run/qmp?node=a&colour=blue",
    ],
)
def test_nonsense(text):
    with pytest.raises(VolumeError, match="write qmp:/PATH"):
        NodeLocation.parse(text)
