"""The example of another distribution, installed into an environment of its own, and used there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmferry.cli.scaffold import render

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Run = Callable[..., subprocess.CompletedProcess[str]]
DEMO = ("demo", "--tracker", "sonar", "--transport", "pontoon", "--disk-size", "16MiB")
QUICK = ("--trial-opt", "memory=4MiB", "--before", "200ms", "--after", "200ms")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="vm-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def run(repository: Path, place: Path) -> Run:
    """Runs programs of a new environment with the wheels of vmferry and of the example in it.

    Other libraries are those of this environment: a path to them is added, behind its own.
    """
    environment = place / "env"
    venv.create(environment, symlinks=True)
    home = environment / "bin"
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for project in (repository, repository / "examples" / "vmferry-harbour"):
        pip = [sys.executable, "-m", "pip", "--python", str(home / "python"), "install", "--quiet"]
        pip += ["--ignore-installed", "--no-deps", "--no-index", "--no-build-isolation"]
        subprocess.run([*pip, str(project)], check=True, cwd=place)

    def call(program: str, *arguments: str, **variables: str) -> Any:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("VMFERRY_", "PY"))}
        return subprocess.run(
            [str(home / program), *arguments],
            cwd=place,
            env={**clean, "PYTHONDONTWRITEBYTECODE": "1", **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return call


def events(ran: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.stdout.splitlines()]


def demo(run: Run, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run("migrate", *DEMO, "--json", *QUICK, *options, **variables)


def test_the_environment_is_clean(run: Run, place: Path) -> None:
    code = "import vmferry, vmferry_harbour; print(vmferry.__file__, vmferry_harbour.__file__)"
    for file in run("python", "-c", code).stdout.split():
        assert Path(file).is_relative_to(place), file


def test_its_plugins_are_listed(run: Run) -> None:
    shown = json.loads(run("migrate", "plugins", "--json").stdout)
    own = {each["name"]: each for each in shown if each["distribution"] == "vmferry-harbour"}
    assert {(each["kind"], name, each["error"]) for name, each in own.items()} == {
        ("tracker", "sonar", ""),
        ("transport", "pontoon", ""),
        ("hook", "logbook", ""),
    }
    assert {each["version"] for each in own.values()} == {"0.3.1"}
    roles = {"before_switch": "policy", "finished": "observer", "round_finished": "observer"}
    assert own["logbook"]["capabilities"] == roles


def test_its_options_are_shown_with_defaults_and_units(run: Run) -> None:
    shown = run("migrate", "plugins", "show", "sonar").stdout
    assert "blake2b|sha256" in shown
    assert re.search(r"patience +float +30.0 s +seconds +> 0, <= 3600", shown), shown


def test_a_migration_uses_all_three(run: Run, place: Path) -> None:
    book = place / "trips.jsonl"
    ran = demo(run, "--tracker-opt", "digest=sha256", VMFERRY_LOGBOOK=str(book))
    assert ran.returncode == 0, ran.stderr
    facts = next(event["facts"] for event in events(ran) if event.get("name") == "verdict")
    assert facts["verdict"] == "nothing was lost"
    lines = [json.loads(line) for line in book.read_text().splitlines()]
    roles = {line["role"]: line["outcome"] for line in lines if "role" in line}
    assert roles == {"source": "done", "destination": "done"}
    assert [line["round"] for line in lines if "round" in line][:1] == [0]


def test_an_observer_that_raises_is_named_and_the_migration_goes_on(run: Run, place: Path) -> None:
    ran = demo(run, VMFERRY_LOGBOOK=str(place))
    assert ran.returncode == 0, ran.stderr
    assert "hook plugin 'logbook' failed in vmferry_finished, the migration goes on" in ran.stderr
    assert "IsADirectoryError" in ran.stderr


def test_a_policy_that_raises_stops_the_job_before_the_switch(run: Run) -> None:
    ran = demo(run, VMFERRY_MOORED="demo")
    assert ran.returncode == 4, ran.stderr
    assert "demo is moored" in ran.stderr
    phases = [event["phase"] for event in events(ran) if event["event"] == "phase_changed"]
    assert phases[-1] == "failed"
    assert "push-memory" in phases
    assert "stop" not in phases
    summary = next(event for event in events(ran) if event["event"] == "finished")
    assert (summary["outcome"], summary["owner"]) == ("failed", "source")


def test_its_own_tests_pass(run: Run, repository: Path) -> None:
    project = repository / "examples" / "vmferry-harbour"
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "-c", str(project / "pyproject.toml"))
    ran = run("python", "-m", "pytest", *options, str(project / "tests"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(re.findall(r"(\d+) passed", ran.stdout)[-1]) > 100


def test_its_transport_is_what_a_new_project_has(repository: Path) -> None:
    written = render("transport", "pontoon").files["src/vmferry_pontoon/transport.py"]
    kept = repository / "examples/vmferry-harbour/src/vmferry_harbour/transport.py"
    assert kept.read_text() == written
