"""The hook plugin keeps its contract, and does what it is for."""

from __future__ import annotations

import pytest

from vmferry.api import Guest
from vmferry.cli.scaffold.samples.hook import Curfew
from vmferry.errors import Veto
from vmferry.testing.hook import HookConformance

GUEST = Guest(name="web1", hypervisor="process")


class TestCurfew(HookConformance):
    """All of the contract."""

    @pytest.fixture
    def hook(self) -> Curfew:
        """The plugin, as vmferry makes it."""
        return Curfew()


def test_a_guest_that_is_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may move."""
    monkeypatch.setenv("CURFEW", "db1,web1")
    with pytest.raises(Veto, match="web1"):
        Curfew().vmferry_before_switch(GUEST)
    monkeypatch.setenv("CURFEW", "db1")
    Curfew().vmferry_before_switch(GUEST)
