from __future__ import annotations

from typing import Any

import pytest

from vmferry.engine import context
from vmferry.errors import InputError, OptionError, PluginNotFound
from vmferry.plugins import ANY_PLUGIN, KINDS, Registry, temporary


def test_the_registry_is_what_the_engine_asks_for() -> None:
    registry: context.Registry = Registry()
    assert registry.options("tracker", "export") == {}


def test_every_kind_has_a_method_of_its_own() -> None:
    for kind in KINDS:
        with pytest.raises(PluginNotFound) as caught:
            getattr(Registry(), kind)("no-such-plugin")
        assert caught.value.kind == kind


def test_settings_of_the_plugin_win_over_those_for_any(sample: Any) -> None:
    table = {"tracker": {ANY_PLUGIN: {"threads": "3", "window": "2s"}, "sample": {"threads": "4"}}}
    with temporary("tracker", "sample", sample):
        options: Any = Registry(table).tracker("sample").options
    assert (options.threads, options.window) == (4, 2.0)


def test_every_call_gives_an_instance_of_its_own(sample: Any) -> None:
    with temporary("tracker", "sample", sample):
        registry = Registry()
        assert registry.tracker("sample") is not registry.tracker("sample")


def test_check_finds_wrong_options_before_anything_is_constructed(sample: Any) -> None:
    def explode(self: object, options: object = None) -> None:
        raise AssertionError("constructed")

    shy = type("Shy", (sample,), {"__init__": explode})
    with temporary("tracker", "sample", shy):
        Registry({"tracker": {"sample": {"threads": 3}, ANY_PLUGIN: {"x": 1}}, "volume": {}})
        Registry({"tracker": {"sample": {"threads": 3}}}).check()
        with pytest.raises(OptionError, match="colour"):
            Registry({"tracker": {"sample": {"colour": "red"}}}).check()
    with pytest.raises(PluginNotFound):
        Registry({"tracker": {"no-such-plugin": {}}}).check()


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="no plugin kind named 'engine'"):
        Registry({"engine": {}})
