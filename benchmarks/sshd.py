"""An sshd of the benchmark's own on a free port, that lets in the user who runs it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Login", "login"]

_SETTINGS = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
"""


class Login:
    """How to log in.

    Attributes:
        host: ``user@127.0.0.1:port``.
        command: ssh with the options that it takes.

    """

    def __init__(self, folder: Path, port: int) -> None:
        self.host = f"{getpass.getuser()}@127.0.0.1:{port}"
        options = {
            "IdentityFile": folder / "key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "no",
            "LogLevel": "ERROR",
            "BatchMode": "yes",
        }
        self.command = " ".join(["ssh", "-F none", *(f"-o {k}={v}" for k, v in options.items())])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("sshd did not start")


@contextmanager
def login(folder: Path) -> Iterator[Login]:
    """Run sshd while the ``with`` block lasts; its files are below ``folder``."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        raise RuntimeError("there is no sshd here; install openssh-server, or leave ssh out")
    for name in ("host", "key"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    if os.geteuid() == 0:  # where sshd confines itself
        Path("/run/sshd").mkdir(exist_ok=True)
    port = _free_port()
    (folder / "config").write_text(_SETTINGS.format(port=port, folder=folder))
    with subprocess.Popen([program, "-D", "-E", folder / "log", "-f", folder / "config"]) as server:
        try:
            _wait_for(port)
            yield Login(folder, port)
        finally:
            server.terminate()
