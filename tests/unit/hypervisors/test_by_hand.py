"""Process guests from the command line."""

import json
import signal
import time

import pytest
from click.testing import CliRunner

from vmferry_hypervisors.process.__main__ import main
from vmferry_hypervisors.process.folder import GuestFolder


@pytest.fixture
def run(tmp_path):
    def run(*words, code=0):
        result = CliRunner().invoke(main, [*words, "--state-dir", str(tmp_path / "host")])
        assert result.exit_code == code, result.output
        return result.output

    yield run
    GuestFolder(tmp_path / "host", "one").kill()


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


def start(run, disk, *settings, code=0):
    words = [word for setting in settings for word in ("--set", setting)]
    return run("start", "one", "--disk", f"file:{disk}", "--memory", "1MiB", *words, code=code)


def test_a_life(run, disk):
    assert "one runs as process" in start(run, disk, "write_rate=500", "fsync_every=0")
    time.sleep(0.3)
    assert "one: process" in run("status")
    verdict = json.loads(run("verify", "one"))
    assert verdict["acknowledged"] > 0
    assert "one: ended" in run("status")
    with open(disk, "r+b") as file:
        file.truncate(4096)
        file.truncate(1 << 20)
    assert json.loads(run("verify", "one", code=6))["lost"] > 0
    run("stop", "one")
    assert run("status") == ""
    run("stop", "one")


def test_suspended_guest_is_resumed(run, disk, tmp_path):
    start(run, disk)
    folder = GuestFolder(tmp_path / "host", "one")
    folder.signal(signal.SIGSTOP)
    while not folder.stopped():
        time.sleep(0.01)
    run("resume", "one")
    assert not folder.stopped()


@pytest.mark.parametrize(
    ("setting", "text"), [("write_rate=fast", "write_rate"), ("colour=red", "colour")]
)
def test_wrong_setting_is_named(run, disk, setting, text):
    assert text in start(run, disk, setting, code=2)


def test_missing_disk_is_named(run, tmp_path):
    assert "no-disk" in start(run, tmp_path / "no-disk", code=1)
