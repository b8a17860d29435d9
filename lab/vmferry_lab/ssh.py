"""The way into a host: commands and files over one shared ssh connection."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmferry_lab.commands import run
from vmferry_lab.errors import CommandFailed, LabError

__all__ = ["Ssh"]


@dataclass(frozen=True)
class Ssh:
    """Ssh to one host, from the laboratory's ``run`` folder.

    Attributes:
        name: the host.
        port: the port of 127.0.0.1 that leads to it.
        folder: the laboratory's ``run`` folder; the ssh options' paths are relative to it, since
            a socket's path is limited to 107 bytes.

    """

    name: str
    port: int
    folder: Path

    @property
    def options(self) -> list[str]:
        """What ssh, scp and sftp need besides the port."""
        values = {
            "BatchMode": "yes",
            "ConnectTimeout": "30",
            "ControlMaster": "auto",
            "ControlPath": f"{self.name}.ssh",
            "ControlPersist": "600",
            "HostKeyAlias": self.name,
            "IdentitiesOnly": "yes",
            "IdentityFile": "../keys/id_ed25519",
            "LogLevel": "ERROR",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "8",
            "User": "root",
            "UserKnownHostsFile": "../keys/known_hosts",
        }
        return ["-F", "none", *(word for k, v in values.items() for word in ("-o", f"{k}={v}"))]

    def argv(self, command: str = "", *, terminal: bool = False) -> list[str]:
        """An ssh command line; run it in :attr:`folder`."""
        asked = ["-t"] if terminal else ["-T"]
        there = [command] if command else []
        return ["ssh", *self.options, *asked, "-p", str(self.port), "127.0.0.1", "--", *there]

    def run(
        self, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 600.0
    ) -> str:
        """Run a command on the host and return what it wrote to stdout.

        Args:
            command: a line for the host's shell, or words that the shell does not touch.
            stdin: what it reads.
            timeout: seconds to wait for its end. The command itself may outlive it.

        Raises:
            CommandFailed: it ended with a code other than 0 or took too long; 255 is ssh's own.

        """
        line = command if isinstance(command, str) else shlex.join(command)
        try:
            return run(self.argv(line), cwd=self.folder, stdin=stdin, timeout=timeout)
        except CommandFailed as failed:
            raise CommandFailed(
                f"{self.name}: {line}", failed.code, failed.output, failed.complaint
            ) from None

    def put(self, here: Path, there: str) -> None:
        """Copy a file or a folder's content to a path on the host."""
        source = ["-C", str(here), "."] if here.is_dir() else ["-C", str(here.parent), here.name]
        target = there if here.is_dir() else os.path.dirname(there)
        quoted = shlex.quote(target)
        line = f"mkdir -p {quoted} && tar -C {quoted} --no-same-owner -xf -"
        self._pipe(["tar", *source[:2], "-cf", "-", source[2]], self.argv(line))
        if not here.is_dir() and os.path.basename(there) not in ("", here.name):
            self.run(["mv", f"{target}/{here.name}", there])

    def get(self, there: str, here: Path) -> None:
        """Copy a file from the host to a path here."""
        with here.open("wb") as sink:
            argv = self.argv(shlex.join(["cat", there]))
            done = subprocess.run(
                argv, cwd=self.folder, stdout=sink, stderr=subprocess.PIPE, check=False
            )
        if done.returncode:
            raise LabError(f"{self.name}: cannot read {there}: {done.stderr.decode().strip()}")

    def _pipe(self, source: list[str], sink: list[str]) -> None:
        with subprocess.Popen(source, stdout=subprocess.PIPE) as tar:
            done = subprocess.run(
                sink, cwd=self.folder, stdin=tar.stdout, capture_output=True, check=False
            )
        if done.returncode or tar.returncode:
            raise LabError(f"{self.name}: copying failed: {done.stderr.decode().strip()}")

    def close(self) -> None:
        """End the shared connection."""
        argv = ["ssh", *self.options, "-O", "exit", "127.0.0.1"]
        subprocess.run(argv, cwd=self.folder, capture_output=True, check=False)
