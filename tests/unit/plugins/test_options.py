from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal

import pytest

from vmferry.api import Options
from vmferry.errors import OptionError
from vmferry.plugins import load, temporary
from vmferry.plugins.options import option_infos, validate


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"window": "500ms"}, "window", 0.5),
        ({"window": 2}, "window", 2.0),
        ({"block_size": "64KiB"}, "block_size", 65536),
        ({"block-size": "4k"}, "block_size", 4096),
        ({"block_size": 1024}, "block_size", 1024),
        ({"speed": "1Gbit/s"}, "speed", 125_000_000),
        ({"limit": "1GiB"}, "limit", 1 << 30),
        ({"limit": "none"}, "limit", None),
        ({"threads": "7"}, "threads", 7),
        ({"sparse": "yes"}, "sparse", True),
        ({"sparse": "off"}, "sparse", False),
        ({"sparse": "true"}, "sparse", True),
        ({"tags": "x, y"}, "tags", ("x", "y")),
        ({"tags": ["x"]}, "tags", ("x",)),
        ({"folder": "/srv"}, "folder", Path("/srv")),
    ],
)
def test_text_becomes_what_the_option_asks_for(
    sample: Any, given: dict[str, Any], name: str, value: object
) -> None:
    with temporary("tracker", "sample", sample):
        options = load("tracker", "sample", given).options
    assert getattr(options, name) == value
    assert type(getattr(options, name)) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colour": "red"}, "tracker plugin 'sample' has no option 'colour'; there are: window, "),
        ({"threads": "many"}, "option 'threads' of tracker plugin 'sample': Expected `int`"),
        ({"threads": 1.5}, "option 'threads'"),
        ({"block-size": "9 fish"}, "option 'block_size'.*'9 fish' is not a size"),
        ({"block-size": "1k", "window": "0s"}, "option 'window'.*>= 0.1.*given '0s'"),
        ({"block-size": 1}, "option 'block_size'.*>= 512.*given 1"),
        ({"sparse": "perhaps"}, "option 'sparse'.*given 'perhaps'"),
        ({"folder": 3}, "option 'folder'.*Expected a path.*given 3"),
    ],
)
def test_a_wrong_option_is_named_with_its_plugin(
    sample: Any, given: dict[str, Any], message: str
) -> None:
    with temporary("tracker", "sample", sample), pytest.raises(OptionError, match=message):
        load("tracker", "sample", given)


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Choices(Options, frozen=True, kw_only=True):
    level: Level = Level.LOW
    mode: Literal["fast", "small"] = "fast"

    def __post_init__(self) -> None:
        if self.level is Level.HIGH and self.mode == "small":
            raise ValueError("high is never small")


def test_choices_are_shown_and_kept() -> None:
    assert [info.type for info in option_infos(Choices)] == ["low|high", "fast|small"]
    options = validate("p", Choices, {"level": "high"})
    assert options == Choices(level=Level.HIGH)
    with pytest.raises(OptionError, match=r"'mode'.*'slow'"):
        validate("p", Choices, {"mode": "slow"})


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(OptionError, match="high is never small"):
        validate("p", Choices, {"level": "high", "mode": "small"})
