from __future__ import annotations

import io
import time
from typing import Any

import pytest

from vmferry.api import NoOptions, Options, Trial
from vmferry.errors import InputError, OptionError, PluginError, PluginNotFound
from vmferry.plugins import available, candidates, describe, load, names, temporary

TRACKER_SOURCE = """
from vmferry.api import Tracker

class Floppy(Tracker):
    api_version = 1
    name = "floppy"
    summary = "tracks floppies"
    async def start(self, disk, block_size): return block_size
    async def harvest(self): ...
    async def drain(self): ...
    async def stop(self): ...
"""


def test_load_finds_checks_and_constructs(install: Any) -> None:
    install("floppies", {"vmferry.trackers": {"floppy": "fl_a:Floppy"}}, fl_a=TRACKER_SOURCE)
    plugin = load("tracker", "floppy")
    assert type(plugin).__name__ == "Floppy"
    assert isinstance(plugin.options, NoOptions)
    assert load("tracker", "floppy") is not plugin


def test_distributions_are_looked_through_once(install: Any, monkeypatch: Any) -> None:
    """And again when one is installed beside those there are, or in a folder of its own."""
    looked = []
    real = candidates.entry_points
    monkeypatch.setattr(candidates, "entry_points", lambda: looked.append(1) or real())
    install("floppies", {"vmferry.trackers": {"floppy": "fl_b:Floppy"}}, fl_b=TRACKER_SOURCE)
    for kind in ("tracker", "volume", "tracker", "transport"):
        names(kind)
    assert len(looked) == 1
    install("tapes", {"vmferry.trackers": {"tape": "fl_b:Tape"}})
    assert {"floppy", "tape"} <= set(names("tracker"))
    assert len(looked) == 2


def test_a_distribution_that_appears_in_a_known_folder_is_found(
    install: Any, tmp_path: Any
) -> None:
    install("floppies", {"vmferry.trackers": {"floppy": "fl_c:Floppy"}})
    names("tracker")
    time.sleep(0.02)  # a folder's time of change is as fine as the kernel's clock tick
    info = tmp_path / "floppies" / "tapes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tapes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vmferry.trackers]\ntape = fl_c:Tape\n")
    assert {"floppy", "tape"} <= set(names("tracker"))


def test_load_lists_what_there_is_when_there_is_no_such_plugin(sample: Any) -> None:
    with temporary("tracker", "sample", sample), pytest.raises(PluginNotFound) as caught:
        load("tracker", "nothing")
    assert "sample" in caught.value.available
    assert caught.value.kind == "tracker"


def test_load_refuses_a_kind_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="there are: volume, tracker"):
        load("floppy", "x")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("assert False, 'not here'", "AssertionError: not here"),
        ("x = 1", "AttributeError"),
        ("class Floppy: pass", "no subclass of vmferry.api.Tracker"),
        ("Floppy = 5", "no subclass of vmferry.api.Tracker"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_with_its_distribution(
    install: Any, source: str, reason: str
) -> None:
    install("floppies", {"vmferry.trackers": {"floppy": "fl_b:Floppy"}}, "2.7", fl_b=source)
    with pytest.raises(PluginError, match=r"tracker plugin 'floppy' of floppies 2\.7") as caught:
        load("tracker", "floppy")
    assert reason in str(caught.value)
    (info,) = [info for info in available("tracker") if info.name == "floppy"]
    assert reason in info.error
    assert (info.distribution, info.version) == ("floppies", "2.7")


def test_two_distributions_with_one_name_are_refused_naming_both(install: Any) -> None:
    for dist, module in (("floppies", "fl_c"), ("diskettes", "fl_d")):
        install(dist, {"vmferry.trackers": {"floppy": f"{module}:Floppy"}}, fl_c=TRACKER_SOURCE)
    with pytest.raises(PluginError, match=r"by diskettes 1\.0 and floppies 1\.0; uninstall all"):
        load("tracker", "floppy")
    infos = [info for info in available("tracker") if info.name == "floppy"]
    assert len(infos) == 2
    assert all("diskettes 1.0 and floppies 1.0" in info.error for info in infos)


class _Cases:
    """Ways to break the contract: what to change, and what the message says."""

    class NotOptions:
        pass

    class Required(Options, frozen=True, kw_only=True):
        must: int

    class Strange(Options, frozen=True, kw_only=True):
        odd: io.StringIO = io.StringIO()

    CASES: tuple[tuple[dict[str, object], str], ...] = (
        ({"api_version": 0}, "api_version is 0, this vmferry accepts 1"),
        ({"api_version": 2}, "api_version is 2"),
        ({"api_version": "1"}, "must be an integer, not '1'"),
        ({"api_version": True}, "must be an integer, not True"),
        ({"name": "other"}, "its name is 'other', its entry point's is 'sample'"),
        ({"options_type": NotOptions}, "options_type must be a subclass"),
        ({"options_type": Required}, "no default: must"),
        ({"options_type": Strange}, "type StringIO is not supported"),
        ({"capabilities": {}}, "capabilities must be of type TrackerCapabilities"),
        ({"summary": None}, "summary must be a string"),
    )


@pytest.mark.parametrize(("change", "message"), _Cases.CASES)
def test_a_broken_contract_says_what_is_wrong(
    sample: Any, change: dict[str, object], message: str
) -> None:
    broken = type("Broken", (sample,), change)
    with temporary("tracker", "sample", broken), pytest.raises(PluginError, match=message):
        load("tracker", "sample")


def test_abstract_methods_that_are_missing_are_named() -> None:
    broken = type("Broken", (Trial,), {"api_version": 1, "name": "sample"})
    with temporary("trial", "sample", broken), pytest.raises(PluginError) as caught:
        load("trial", "sample")
    assert "does not implement close, host_options, start, status, verdict" in str(caught.value)


def test_a_missing_api_version_is_no_crash(sample: Any) -> None:
    class Bare(Trial[NoOptions]):
        name = "bare"

    with temporary("trial", "bare", Bare), pytest.raises(PluginError, match="not None"):
        load("trial", "bare")


def test_a_constructor_that_fails_is_wrapped_but_its_input_error_is_not(sample: Any) -> None:
    def fail(error: Exception) -> type:
        def init(self: object, options: object = None) -> None:
            raise error

        return type("Failing", (sample,), {"__init__": init})

    with temporary("tracker", "sample", fail(KeyError("x"))), pytest.raises(PluginError) as caught:
        load("tracker", "sample")
    assert "cannot be constructed: KeyError: 'x'" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    with (
        temporary("tracker", "sample", fail(OptionError("no such device"))),
        pytest.raises(OptionError, match=r"^no such device$"),
    ):
        load("tracker", "sample")


def test_available_tells_what_a_plugin_can_do(sample: Any) -> None:
    with temporary("tracker", "sample", sample):
        (info,) = [info for info in available("tracker") if info.name == "sample"]
    assert info.error == ""
    assert info.summary == "for tests"
    assert info.api_version == 1
    assert info.capabilities == {"live": "native", "discards": "native", "survives": "emulated"}


def test_available_lists_every_kind_and_one_broken_plugin_hides_no_other(install: Any) -> None:
    points = {
        "vmferry.trackers": {"floppy": "fl_e:Floppy", "gone": "fl_missing:Gone"},
        "vmferry.volumes": {"gone": "fl_missing:Gone"},
    }
    install("floppies", points, fl_e=TRACKER_SOURCE)
    errors = {(info.kind, info.name): info.error for info in available()}
    assert errors["tracker", "floppy"] == ""
    assert "fl_missing" in errors["tracker", "gone"]
    assert "fl_missing" in errors["volume", "gone"]
    assert ("transport", "tcp") in errors


def test_describe_gives_types_defaults_units_and_limits(sample: Any) -> None:
    with temporary("tracker", "sample", sample):
        infos = {info.name: info for info in describe("tracker", "sample")}
    assert list(infos)[:2] == ["window", "block_size"]
    window = infos["window"]
    assert (window.type, window.default, window.unit) == ("float", 1.0, "seconds")
    assert (window.description, window.limits) == ("time between looks", ">= 0.1")
    assert (infos["limit"].type, infos["limit"].unit) == ("int or none", "bytes")
    assert (infos["tags"].type, infos["tags"].default) == ("list of str", ["a"])
    assert (infos["folder"].type, infos["folder"].default) == ("path", "/var/tmp")


def test_temporary_hides_an_installed_plugin_and_gives_it_back(install: Any, sample: Any) -> None:
    install("floppies", {"vmferry.trackers": {"floppy": "fl_f:Floppy"}}, fl_f=TRACKER_SOURCE)
    mine = type("Mine", (sample,), {"name": "floppy"})
    with temporary("tracker", "floppy", mine):
        assert isinstance(load("tracker", "floppy"), mine)
        with temporary("tracker", "floppy", sample), pytest.raises(PluginError, match="'sample'"):
            load("tracker", "floppy")
        assert names("tracker").count("floppy") == 1
    assert type(load("tracker", "floppy")).__name__ == "Floppy"
    with temporary("tracker", "brief", mine):
        assert "brief" in names("tracker")
    assert "brief" not in names("tracker")


def test_a_distribution_without_metadata_hides_no_other(install: Any, tmp_path: Any) -> None:
    install("floppies", {"vmferry.trackers": {"floppy": "fl_g:Floppy"}}, fl_g=TRACKER_SOURCE)
    next(tmp_path.glob("floppies/*.dist-info/METADATA")).write_text("")
    assert "tcp" in names("transport")
    (info,) = [info for info in available("tracker") if info.name == "floppy"]
    assert info.error == ""
