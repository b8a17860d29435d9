"""A real sshd on a high port, with keys and settings of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

_START = 30.0


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


class Login:
    """An account at a real sshd, and how ``migrate`` gets there.

    Attributes:
        host: ``user@127.0.0.1:port``.
        folder: of sshd's and ssh's files.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sshd = _program("sshd")
        for name in ("host", "key", "stranger"):
            keygen = [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", ""]
            subprocess.run([*keygen, "-f", str(folder / name)], check=True)
        self._reserved = socket.socket()  # nobody else gets the port; sshd reuses it
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self.host = f"{getpass.getuser()}@127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._write()

    def _write(self) -> None:
        shutil.copy(self.folder / "key.pub", self.folder / "authorized")
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.folder}/authorized",
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "MaxStartups 100",
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        key = (self.folder / "host.pub").read_text()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}")
        (self.folder / "nobody_known").write_text("")

    def start(self) -> None:
        if os.geteuid() == 0:  # where sshd wants to confine itself
            Path("/run/sshd").mkdir(exist_ok=True)
        with open(self.folder / "sshd.log", "ab") as log:
            self._process = subprocess.Popen(
                [self._sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
            except ConnectionRefusedError:
                assert self._process.poll() is None, (self.folder / "sshd.log").read_text()
                time.sleep(0.02)
            else:
                return
        raise AssertionError("sshd did not start")

    def stop(self) -> None:
        self._reserved.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ssh(self, *, key: str = "key", known: str = "known") -> str:
        """The call of ssh, as ``ssh_command`` takes it; it reads no configuration of this user."""
        options = {
            "IdentityFile": self.folder / key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.folder / known,
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        return " ".join(["ssh", "-F none", *(f"-o {k}={v}" for k, v in options.items())])

    def processes(self) -> list[psutil.Process]:
        """Every ssh that was started with this account's key, and what began it."""
        mark = str(self.folder / "key")
        return [
            each
            for each in psutil.process_iter(["cmdline", "name"])
            if each.info["name"] == "ssh" and any(mark in w for w in each.info["cmdline"] or ())
        ]

    def signal(self, number: signal.Signals) -> int:
        """Send it to each of them and return how many there were.

        Those that end because another one did, before their turn came, count as well.
        """
        found = self.processes()
        for each in found:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)
        return len(found)


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    _program("ssh")
    account = Login(tmp_path_factory.mktemp("sshd"))
    account.start()
    yield account
    account.stop()


class Remote:
    """The options with which ``migrate`` reaches the destination of ``hosts`` through ssh."""

    def __init__(self, login: Login, hosts: Any) -> None:
        self.login, self.state = login, hosts.folder / "there"
        (hosts.folder / "pool").mkdir()
        self.url = f"ssh://{login.host}{hosts.folder}/pool"
        self.migrate = f"{sys.executable} -m vmferry"
        self._destination = hosts.folder / "destination"

    def options(self, *more: str, bulk: str = "ssh", ssh: str = "", migrate: str = "") -> list[str]:
        """``more`` is for the agent."""
        agent = [
            f"--state-dir {self.state}",
            f"--hypervisor-opt state_dir={self._destination}",
            "--idle 1s",
            *more,
        ]
        chosen = {
            "remote_options": " ".join(agent),
            "ssh_command": ssh or self.login.ssh(),
            "bulk": bulk,
        }
        words = ["--remote-command", migrate or self.migrate]
        for key, value in chosen.items():
            words += ["--transport-opt", f"ssh.{key}={value}"]
        return words

    def agents(self) -> list[psutil.Process]:
        """The agents that were started for this state folder."""
        mark = f"ssh://{self.state}/"
        return [
            each
            for each in psutil.process_iter(["cmdline"])
            if any(word.startswith(mark) for word in each.info["cmdline"] or ())
        ]

    def close(self) -> None:
        for agent in self.agents():
            with suppress(psutil.NoSuchProcess):
                agent.kill()


@pytest.fixture
def remote(login: Login, hosts: Any) -> Iterator[Remote]:
    there = Remote(login, hosts)
    yield there
    there.close()
