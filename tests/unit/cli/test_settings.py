from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from vmferry.cli.parameters import DURATION, RATE, SIZE
from vmferry.cli.settings import merge, parse_option, plugin_options, read_config
from vmferry.errors import InputError
from vmferry.plugins import Registry

CONFIG = """
[tracker.dm-era]
block-size = "64KiB"
timeout = 3

[tracker."*"]
timeout = 9

[transport.tcp]
nodelay = true
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "migrate.toml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("key=value", ("*", "key", "value")),
        ("dm-era.block-size=4k", ("dm-era", "block_size", "4k")),
        ("key=a=b.c", ("*", "key", "a=b.c")),
        ("key=", ("*", "key", "")),
    ],
)
def test_an_option_names_its_plugin_or_any(text: str, parsed: tuple[str, str, str]) -> None:
    assert parse_option("tracker", text) == parsed


@pytest.mark.parametrize("text", ["key", "=value", "a.b.c=d", ""])
def test_an_option_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--tracker-opt"):
        parse_option("tracker", text)


def test_a_file_gives_options_by_kind_and_plugin(config: Path) -> None:
    assert read_config(config) == {
        "tracker": {"dm-era": {"block_size": "64KiB", "timeout": 3}, "*": {"timeout": 9}},
        "transport": {"tcp": {"nodelay": True}},
    }


def test_the_command_line_has_precedence_over_the_file(config: Path) -> None:
    table = merge(read_config(config), {"tracker": ["timeout=1s", "dm-era.block_size=4k"]})
    registry = Registry(table)
    assert registry.options("tracker", "dm-era") == {"block_size": "4k", "timeout": "1s"}
    assert registry.options("tracker", "other") == {"timeout": "1s"}
    assert registry.options("transport", "tcp") == {"nodelay": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[tracker", "is not valid TOML"),
        ("[trakcer.x]", r"\[trakcer\] is no plugin kind; there are: volume, tracker"),
        ("tracker = 5", "'tracker' must be a table of plugins"),
        ("[tracker]\nexport = 5", r"'export' in \[tracker\] must be a table"),
        ("x = '\ud800'", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=rf"wrong\.toml.*{message}"):
        read_config(path)


def test_a_file_that_is_absent_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*absent"):
        read_config(tmp_path / "absent.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(InputError, match="larger than"):
        read_config(tmp_path / "huge.toml")


@click.command()
@plugin_options("tracker", "transport")
@click.option("--size", type=SIZE, default="64KiB")
@click.option("--rate", type=RATE, default="unlimited")
@click.option("--wait", type=DURATION, default=1.5)
def sample(plugin_settings: Any, size: int, rate: int, wait: float) -> None:
    click.echo(repr((plugin_settings, size, rate, wait)))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(sample, arguments)


def test_the_decorator_gives_the_merged_table(config: Path) -> None:
    result = run("--config", str(config), "--tracker-opt", "a=1", "--transport-opt", "tcp.b=2")
    table = eval(result.output)[0]
    assert table["tracker"]["*"] == {"timeout": 9, "a": "1"}
    assert table["transport"]["tcp"] == {"nodelay": True, "b": "2"}
    assert eval(run().output)[0] == {"tracker": {}, "transport": {}}


def test_the_file_may_be_named_by_the_environment(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMFERRY_CONFIG", str(config))
    assert "nodelay" in run().output


def test_sizes_rates_and_durations_have_units() -> None:
    assert eval(run().output)[1:] == (65536, 0, 1.5)
    result = run("--size", "1.5GiB", "--rate", "1Gbit/s", "--wait", "250ms")
    assert eval(result.output)[1:] == (3 << 29, 125_000_000, 0.25)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--size", "9 fish", "'9 fish' is not a size"),
        ("--rate", "fast", "'fast' is not a size"),
        ("--wait", "soon", "'soon' is not a duration"),
    ],
)
def test_a_wrong_unit_is_wrong_usage(option: str, text: str, message: str) -> None:
    result = run(option, text)
    assert result.exit_code == 2
    assert option in result.output
    assert message in result.output


@pytest.fixture
def serving() -> Any:
    @click.command("serve")
    @click.option("--pool")
    @click.option("--idle", type=DURATION)
    @click.option("--place", multiple=True)
    @plugin_options("transport")
    def serve(**given: Any) -> None:
        click.echo(given)

    return lambda *arguments, **env: CliRunner().invoke(serve, arguments, env=env)


SERVE = """
[serve]
pool = "/srv/guests"
idle = "1m"
place = ["a=/dev/a", "b=/dev/b"]

[transport.tcp]
nodelay = true
"""


def test_a_commands_table_gives_defaults_of_its_options(serving: Any, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(SERVE)
    said = serving("--config", str(tmp_path / "c.toml"), "--pool", "/elsewhere").output
    assert "'pool': '/elsewhere'" in said
    assert "'idle': 60" in said
    assert "'place': ('a=/dev/a', 'b=/dev/b')" in said
    assert "{'tcp': {'nodelay': True}}" in said


@pytest.mark.parametrize("folder", ["vmferry", ""])
def test_a_file_in_the_usual_place_is_read(serving: Any, tmp_path: Path, folder: str) -> None:
    (tmp_path / "vmferry").mkdir()
    (tmp_path / folder / "config.toml").write_text(SERVE)
    said = serving(XDG_CONFIG_HOME=str(tmp_path)).output
    assert ("/srv/guests" in said) == bool(folder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[serve]\npol = 1", "[serve] has no option 'pol'"),
        ("serve = 1", "'serve' must be a table, [serve]"),
    ],
)
def test_a_commands_table_that_cannot_be_right(
    serving: Any, tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "c.toml").write_text(text)
    result = serving("--config", str(tmp_path / "c.toml"))
    assert isinstance(result.exception, InputError)
    assert complaint in str(result.exception)
