"""``ssh`` as a child process whose standard input and output are one socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import shutil
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from vmferry.api.transport import Address
from vmferry.errors import InputError
from vmferry_transports.ssh.options import SshOptions

__all__ = ["SshProcess", "command", "settings_command"]

_log = logging.getLogger("vmferry_transports.ssh")

_OURS = (
    "-T",  # no terminal: it would change bytes
    *("-o", "ClearAllForwardings=yes"),  # a port that the user forwards can be taken only once
    *("-o", "ForwardAgent=no"),
    *("-o", "ForwardX11=no"),
    *("-o", "PermitLocalCommand=no"),
    *("-o", "RemoteCommand=none"),  # one in the user's configuration would exclude ours
    *("-o", "Tunnel=no"),
)
_IGNORING = ("sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh")
"""Ctrl-C at the terminal is for migrate, which decides; ssh keeps a signal ignored that it was
started with so (clientloop.c)."""

_BUFFER = 1 << 20
_SAID = 20


def _words(option: str, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{option} {text!r}: {error}") from None
    if not words:
        raise InputError(f"{option} is empty")
    return words


def _ssh(address: Address, options: SshOptions) -> list[str]:
    words = _words("ssh_command", options.ssh_command)
    if shutil.which(words[0]) is None:
        raise InputError(
            f"the program {words[0]!r} is not installed here; install an OpenSSH client, or name"
            " another with --transport-opt ssh_command=..."
        )
    return words


def _where(address: Address) -> list[str]:
    port = ["-p", str(address.port)] if address.port else []
    user = ["-l", address.user] if address.user else []
    return [*port, *user, "--", address.host]


def command(address: Address, options: SshOptions) -> list[str]:
    """The call of ssh that connects to the agent at ``address``.

    Raises:
        InputError: ssh is not installed, or an option cannot be taken apart.

    """
    wait = f"ConnectTimeout={max(1, round(options.connect_timeout))}"
    remote = f"{options.remote_command} stdio {options.remote_options}".rstrip()
    if address.path not in ("", "/"):
        remote += f" --pool {shlex.quote(address.path)}"
    return [*_ssh(address, options), *_OURS, "-o", wait, *_where(address), remote]


def settings_command(address: Address, options: SshOptions) -> list[str]:
    """The call of ssh that prints what the user's configuration says of that host."""
    return [*_ssh(address, options), "-G", *_where(address)]


class SshProcess:
    """A running ssh. It ends when the socket is closed, or is made to end.

    Attributes:
        sock: what the program at the other end reads and writes; whoever takes it closes it.
        ended: ssh's exit code, once it has ended and been waited for.

    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.sock, theirs = socket.socketpair()
        self.ended: Future[int] = Future()
        self._said: deque[str] = deque(maxlen=_SAID)
        for end in (self.sock, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        try:
            self._popen = subprocess.Popen(
                [*_IGNORING, *argv],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
            )
        except BaseException:
            self.sock.close()
            raise
        finally:
            theirs.close()
        self.sock.setblocking(False)
        self._thread = threading.Thread(target=self._attend, name="ssh", daemon=True)
        self._thread.start()

    @property
    def said(self) -> list[str]:
        """The last lines of what ssh, and the program there, wrote to standard error."""
        return list(self._said)

    async def wait(self, timeout: float) -> int | None:
        """The exit code once it has ended; ``None`` if that takes longer than ``timeout``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                return await asyncio.shield(asyncio.wrap_future(self.ended))
        return None

    def end(self) -> None:
        """Make it end now; it is waited for in the background."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                self._popen.terminate()

    async def close(self, timeout: float) -> None:
        """Wait for it to end by itself, then make it; on return there is no such process."""
        if await self.wait(timeout) is None:
            self._popen.terminate()
            if await self.wait(timeout) is None:
                self._popen.kill()
                await asyncio.wrap_future(self.ended)
        self._thread.join()

    def _attend(self) -> None:
        """In a thread: take what is written to standard error, then wait for the end."""
        assert self._popen.stderr is not None
        with self._popen.stderr as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                self._said.append(text)
                _log.info("ssh: %s", text)
        self.ended.set_result(self._popen.wait())
