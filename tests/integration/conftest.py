"""Running the demo as a user does, in processes of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from vmferry.plugins import load

BUSY = ("--trial-opt", "write_rate=0", "--trial-opt", "memory=16777216")


class DemoResult(NamedTuple):
    """Exit code, events and stderr of one demo."""

    code: int
    events: list[dict[str, Any]]
    errors: str

    @property
    def verdict(self) -> dict[str, Any]:
        facts: dict[str, Any] = next(e["facts"] for e in self.events if e.get("name") == "verdict")
        return facts

    @property
    def summary(self) -> dict[str, Any]:
        return next(e for e in self.events if e["event"] == "finished")


Demo = Callable[..., DemoResult]


def run_demo(*options: str, busy: bool = False, env: Mapping[str, str] | None = None) -> DemoResult:
    command = [sys.executable, "-m", "vmferry", "demo", "--json", *options, *(BUSY if busy else ())]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=env, check=False
    )
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return DemoResult(result.returncode, events, result.stderr)


@pytest.fixture
def demo() -> Demo:
    """Runs one demo; with ``busy`` the guest writes as fast as it can."""
    return run_demo


def _program(kill_at: Sequence[str], log: Path | None) -> list[str]:
    everything = ["-vv", "--log-file", str(log)] if log is not None else []
    if not kill_at:
        return [sys.executable, "-m", "vmferry", *everything]
    killer = str(Path(__file__).with_name("kill_at.py"))
    return [sys.executable, killer, *kill_at, *everything]


class Hosts:
    """A trial guest on one host and an agent process on the other, both below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trial: Any = None
        self.guest = ""
        self._agents: list[subprocess.Popen[str]] = []

    async def start_guest(self, size: int = 32 << 20, **options: Any) -> None:
        self.trial = load("trial", "process", {"memory": "8MiB", **options})
        self.guest = await self.trial.start(self.folder, size)

    def start_agent(
        self,
        *options: str,
        url: str = "tcp://127.0.0.1:0",
        kill_at: Sequence[str] = (),
        log: Path | None = None,
    ) -> str:
        """Start ``migrate serve``, which with ``kill_at`` dies at a step; returns its address.

        With ``log`` it says there all that it can.
        """
        (self.folder / "pool").mkdir(exist_ok=True)
        command = ["serve", url, "--json", "--pool", str(self.folder / "pool"), *options]
        command += ["--state-dir", str(self.folder / "there")]
        command += ["--hypervisor-opt", f"state_dir={self.folder / 'destination'}"]
        agent = subprocess.Popen(
            [*_program(kill_at, log), *command], stdout=subprocess.PIPE, text=True
        )
        self._agents.append(agent)
        assert agent.stdout is not None
        for line in agent.stdout:
            event = json.loads(line)
            if event.get("name") == "listening":
                address: str = event["facts"]["address"]
                return address
        raise AssertionError("the agent did not start")

    def command(self, name: str, *arguments: str) -> list[str]:
        state = ["--state-dir", str(self.folder / "here")]
        host = ["--hypervisor-opt", f"state_dir={self.folder / 'source'}"]
        return [sys.executable, "-m", "vmferry", name, *arguments, *state, *host]

    def migrate(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``migrate run`` or ``check`` at the source to its end."""
        command = self.command(name, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    def there(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command at the destination to its end."""
        command = self.command(name, *arguments)
        command[command.index(str(self.folder / "here"))] = str(self.folder / "there")
        host = f"state_dir={self.folder / 'source'}"
        command[command.index(host)] = f"state_dir={self.folder / 'destination'}"
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    def set(self, job: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run ``migrate set`` for a running job."""
        state = ["--state-dir", str(self.folder / "here")]
        command = [sys.executable, "-m", "vmferry", "set", *state, job, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    def start(
        self, name: str, *arguments: str, kill_at: Sequence[str] = (), log: Path | None = None
    ) -> subprocess.Popen[str]:
        """Begin ``migrate run``; its events come on stdout."""
        command = self.command(name, *arguments, "--json")[3:]
        process = subprocess.Popen(
            [*_program(kill_at, log), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._agents.append(process)
        return process

    async def killed_when_copied(self, share: float, *options: str) -> str:
        """Start a migration and kill its command when so much was sent; returns the job."""
        process = self.start("run", self.guest, self.start_agent(), *options)
        event = await asyncio.to_thread(wait_until_copied, process, share)
        process.kill()
        await asyncio.to_thread(process.communicate, timeout=300)
        return str(event["job"])

    @property
    def arrived(self) -> str:
        """The guest's disk at the destination."""
        return str(self.folder / "pool" / f"{self.guest}-disk0.raw")

    async def close(self) -> None:
        for process in self._agents:
            process.kill()
            process.communicate()
        if self.trial is not None:
            await self.trial.close()


def wait_for_phase(process: subprocess.Popen[str], phase: str) -> dict[str, Any]:
    """Read events until ``phase`` has begun; returns the event."""
    assert process.stdout is not None
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "phase_changed" and event["phase"] == phase:
            return event
    raise AssertionError(f"no phase {phase}")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="vm-") as folder:
        yield Path(folder)


@pytest.fixture
async def hosts(short_path: Path) -> AsyncIterator[Hosts]:
    """Two hosts on this machine."""
    both = Hosts(short_path)
    yield both
    await both.close()


@pytest.fixture
def phase_reached() -> Callable[[subprocess.Popen[str], str], dict[str, Any]]:
    """Waits until a command started by ``hosts.start`` has entered a phase."""
    return wait_for_phase


def wait_until_copied(process: subprocess.Popen[str], share: float) -> dict[str, Any]:
    """Read events until the full copy has come so far; returns the event."""
    assert process.stdout is not None
    event: dict[str, Any]
    for event in map(json.loads, process.stdout):
        full = event["event"] == "progress" and event["round"] == 0
        if full and event["done"] >= share * event["total"]:
            return event
    raise AssertionError("the copy never came so far")


@pytest.fixture
def copied() -> Callable[[subprocess.Popen[str], float], dict[str, Any]]:
    """Waits until a command started by ``hosts.start`` has copied a share of the disk."""
    return wait_until_copied


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, list[str]]:
    """Options for both sides, from one authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    options = {}
    for side in ("source", "destination"):
        issued = authority.issue_cert("127.0.0.1", common_name=side)
        issued.private_key_pem.write_to_path(tmp_path / f"{side}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{side}.pem")
        files = {
            "tls_cert": tmp_path / f"{side}.pem",
            "tls_key": tmp_path / f"{side}.key",
            "tls_ca": tmp_path / "ca.pem",
        }
        settings = [("--transport-opt", f"{key}={path}") for key, path in files.items()]
        options[side] = [word for pair in settings for word in pair]
    return options
