"""``migrate stdio``: what ``ssh`` runs at the other end of ``ssh://host``.

It starts the agent of this host if none runs, in a session of its own, and then passes bytes
between its standard input and output and the agent's unix socket. The agent outlives it, so that a
guest keeps its disk when ssh is lost, and a new login reaches the same agent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import click

from vmferry.cli.exits import ExitCode
from vmferry.cli.logins import Logins, alone
from vmferry.cli.state import private_folder, state_option
from vmferry.errors import InputError, VmferryError

__all__ = ["stdio"]

_START = 90.0
_LOOK = 0.02
_PIECE = 256 << 10
_PIPE = 1 << 20
_MOST_LOG = 4 << 20
_LONGEST_PATH = 107
"""Bytes of a unix socket's path, see unix(7)."""
_IDLE = "60s"


@click.command(
    short_help="Join standard input and output to the agent of logins.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF SERVE]...")
@state_option
def stdio(options: tuple[str, ...], state_dir: Path) -> ExitCode:
    """Join standard input and output to the agent that logins to this host share.

    This is what ssh:// runs at the other end. The agent is started if none runs with the same
    options, which are those of 'migrate serve'. It ends by itself when nobody needs it.

    \b
    Example, in ~/.ssh/authorized_keys, for a key that may deliver guests and nothing else:
      command="migrate stdio --pool /srv/guests",restrict ssh-ed25519 AAAA... alice
    """
    folder = private_folder(private_folder(state_dir.absolute()) / "ssh")
    path = _socket_path(folder, options)
    logins = Logins(str(path))
    logins.enter()
    with alone(str(path)):
        agent = _reached(path) or _started(path, state_dir.absolute(), options)
    with agent:
        agent.sendall(_introduction())
        _pass_on(agent)
    return ExitCode.OK


def _socket_path(folder: Path, options: Sequence[str]) -> Path:
    """A socket for each set of options: an agent has one."""
    config = os.environ.get("VMFERRY_CONFIG", "")
    name = hashlib.blake2b(json.dumps([config, *options]).encode(), digest_size=6).hexdigest()
    path = folder / f"{name}.sock"
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise InputError(f"{path} is too long for a socket; choose a shorter --state-dir")
    return path


def _reached(path: Path) -> socket.socket | None:
    """A connection to the agent, if there is one."""
    agent = socket.socket(socket.AF_UNIX)
    try:
        agent.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        agent.close()
        return None
    except BaseException:
        agent.close()
        raise
    return agent


def _started(path: Path, state: Path, options: Sequence[str]) -> socket.socket:
    log = path.with_suffix(".log")
    if log.exists() and log.stat().st_size > _MOST_LOG:
        log.replace(path.with_suffix(".log.1"))
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        began = file.tell()
        command = [sys.executable, "-m", "vmferry", "-v", "serve", f"ssh://{path}", "--quiet"]
        process = subprocess.Popen(
            [*command, "--state-dir", str(state), "--idle", _IDLE, *options],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        if (agent := _reached(path)) is not None:
            process.returncode = 0  # it is not ours to wait for
            return agent
        if process.poll() is not None:
            raise InputError(_why(log, began))
        time.sleep(_LOOK)
    process.kill()
    process.wait()
    raise VmferryError(f"the agent did not start within {_START:g} seconds; see {log}")


def _why(log: Path, began: int) -> str:
    """The agent's own last words."""
    said = log.read_bytes()[began:].decode(errors="replace").splitlines()
    complaints = [line for line in said if line.startswith("migrate: error: ")]
    text = (complaints or said or ["it said nothing"])[-1]
    return f"the agent did not start: {text.removeprefix('migrate: error: ')}"


def _introduction() -> bytes:
    """Where the login came from and to, as sshd saw it; see ssh(1), SSH_CONNECTION."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    known = {"client": words[0], "server": words[2]} if len(words) == 4 else {}
    return json.dumps(known).encode() + b"\n"


def _pass_on(agent: socket.socket) -> None:
    """Until the agent has closed: the end of the input only ends that direction."""
    for number in (0, 1):
        with contextlib.suppress(OSError):
            fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, _PIPE)
    threading.Thread(target=_pass_up, args=(agent,), daemon=True).start()
    buffer = memoryview(bytearray(_PIECE))
    with contextlib.suppress(ConnectionError):
        while count := agent.recv_into(buffer):
            rest = buffer[:count]
            while rest:
                rest = rest[os.write(1, rest) :]


def _pass_up(agent: socket.socket) -> None:
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    with contextlib.suppress(OSError):
        while count := os.readv(0, [buffer]):
            agent.sendall(view[:count])
        agent.shutdown(socket.SHUT_WR)
