"""Whose options of a plugin count in a demo: the trial's, unless the user has said otherwise."""

from __future__ import annotations

from vmferry.cli.demo_stage import _with
from vmferry.plugins import ANY_PLUGIN


def test_the_trials_options_are_added_and_the_users_stay() -> None:
    given = {"hypervisor": {ANY_PLUGIN: {"limit": "1s"}, "qemu": {"direct": "yes"}}}
    both = _with(given, "hypervisor", {"limit": "2s", "sockets": "/run"})
    assert both["hypervisor"][ANY_PLUGIN] == {"limit": "1s", "sockets": "/run"}
    assert both["hypervisor"]["qemu"] == {"direct": "yes"}
    assert given["hypervisor"][ANY_PLUGIN] == {"limit": "1s"}


def test_a_kind_without_options_gets_the_trials() -> None:
    assert _with({}, "hypervisor", {"a": "b"}) == {"hypervisor": {ANY_PLUGIN: {"a": "b"}}}
