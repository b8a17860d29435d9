from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest

from vmferry.api import Grade, Options, Trial, VolumeCapabilities, VolumeDriver
from vmferry.cli import main
from vmferry.plugins import temporary


class TapeOptions(Options, frozen=True, kw_only=True):
    reel: Annotated[
        int, msgspec.Meta(ge=512, description="bytes of a reel [big]", extra={"unit": "bytes"})
    ] = 65536
    speed: Annotated[int, msgspec.Meta(extra={"unit": "bytes/s"})] = 0
    rewind: bool = True


def implemented(base: type, **facts: Any) -> type:
    methods = dict.fromkeys(base.__abstractmethods__, lambda self: None)  # type: ignore[attr-defined]
    return type("Tape", (base,), {"api_version": 1, "name": "tape", **methods, **facts})


@pytest.fixture(autouse=True)
def _tape() -> Any:
    good = implemented(
        VolumeDriver,
        summary="on tape",
        options_type=TapeOptions,
        capabilities=VolumeCapabilities(holes=Grade.NATIVE, zeroes=Grade.EMULATED),
    )
    broken = implemented(Trial, api_version=99)
    with temporary("volume", "tape", good), temporary("trial", "tape", broken):
        yield


def test_the_list_shows_what_works_and_why_something_does_not(capsys: Any) -> None:
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "holes (native); zeroes (emulated)" in out
    assert "on tape" in out
    assert "api_version is 99" in out


def test_list_and_the_bare_group_are_the_same(capsys: Any) -> None:
    main(["plugins"])
    bare = capsys.readouterr().out
    main(["plugins", "list"])
    assert capsys.readouterr().out == bare


def test_json_has_every_field(capsys: Any) -> None:
    assert main(["plugins", "list", "--kind", "volume", "--json"]) == 0
    plugins = {plugin["name"]: plugin for plugin in json.loads(capsys.readouterr().out)}
    assert plugins["tape"] == {
        "kind": "volume",
        "name": "tape",
        "distribution": "(temporary)",
        "version": "",
        "summary": "on tape",
        "api_version": 1,
        "capabilities": {
            "holes": "native",
            "zeroes": "emulated",
            "discard": "none",
            "resize": "none",
        },
        "error": "",
    }
    assert {plugin["kind"] for plugin in plugins.values()} == {"volume"}


def test_show_describes_options_with_units(capsys: Any) -> None:
    assert main(["plugins", "show", "tape"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.strip()}
    assert rows["reel"] == "reel int 64.0 KiB bytes >= 512 bytes of a reel [big]"
    assert rows["speed"] == "speed int unlimited bytes/s"
    assert rows["rewind"] == "rewind bool yes"
    assert "api_version is 99" in out


def test_show_as_json(capsys: Any) -> None:
    assert main(["plugins", "show", "tape", "--kind", "volume", "--json"]) == 0
    (plugin,) = json.loads(capsys.readouterr().out)
    assert plugin["options"][0]["default"] == 65536
    assert plugin["options"][0]["unit"] == "bytes"


def test_show_of_an_unknown_name_lists_the_known(capsys: Any) -> None:
    assert main(["plugins", "show", "nothing"]) == 2
    assert "no plugin named 'nothing'; there are: " in capsys.readouterr().err
    assert main(["plugins", "show", "nothing", "--kind", "volume"]) == 2
    known = capsys.readouterr().err.partition("no volume plugin named 'nothing'; there are: ")[2]
    assert {"raw", "tape"} <= set(known.strip().split(", "))
