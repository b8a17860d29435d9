"""What the end of an ``ssh`` that did not get through means, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from vmferry.errors import LinkError

__all__ = ["explain"]

_SSH_FAILED = 255
_BY_TEXT = (
    (
        "Could not resolve hostname",
        "there is no such host: correct the name, or add it to ~/.ssh/config",
    ),
    (
        "Connection refused",
        "no sshd listens there (connection refused): start one, or correct the port",
    ),
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one in known_hosts: find out why, then `ssh-keygen -R` it",
    ),
    (
        "Host key verification failed",
        "its host key is not known here: connect once by `ssh` and confirm it",
    ),
    (
        "Too many authentication failures",
        "login refused, too many keys were tried: name the right one (IdentityFile,"
        " IdentitiesOnly) in ~/.ssh/config",
    ),
    (
        "Permission denied",
        "login refused: see that `ssh` gets you in without vmferry (user, key, agent)",
    ),
    (
        "Connection timed out",
        "it does not answer: is it up, and does a firewall let ssh through?",
    ),
    ("No route to host", "it cannot be reached (no route to host): is it up?"),
    ("Network is unreachable", "its network cannot be reached from here"),
    (
        "kex_exchange_identification",
        "what listens there is no sshd, or it takes no more connections now (MaxStartups)",
    ),
)
_NOT_FOUND = (
    "`{command}` was not found there: install vmferry on that host, or say where it is with"
    " --remote-command, e.g. --remote-command /opt/vmferry/bin/migrate"
)
_NOT_RUNNABLE = "`{command}` cannot be run there: see its mode, and --remote-command"
_TOO_OLD = (
    "`{command}` there does not know the command 'stdio': its vmferry is older than this one, or it"
    " is another program of that name; update it"
)


def _last(said: Sequence[str]) -> str:
    lines = [line for line in said if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _failed_login(said: Sequence[str]) -> str:
    text = "\n".join(said)
    for sign, meaning in _BY_TEXT:
        if sign in text:
            return f"{meaning} (ssh: {_last(said)})"
    return f"ssh failed: {_last(said)}"


def explain(peer: str, command: str, code: int | None, said: Sequence[str]) -> LinkError:
    """The error for an ssh that ended before the agent answered.

    Args:
        peer: names the host.
        command: what was to be run there.
        code: ssh's exit code; ``None`` if it had not ended.
        said: what came on standard error.

    """
    if code == _SSH_FAILED:
        return LinkError(f"{peer}: {_failed_login(said)}")
    if code == 127:
        return LinkError(f"{peer}: {_NOT_FOUND.format(command=command)}")
    if code == 126:
        return LinkError(f"{peer}: {_NOT_RUNNABLE.format(command=command)}")
    if any("No such command 'stdio'" in line for line in said):
        return LinkError(f"{peer}: {_TOO_OLD.format(command=command)}")
    reason = _last(said).removeprefix("migrate: ").removeprefix("error: ")
    ending = "" if code is None else f" (exit code {code})"
    return LinkError(f"{peer}: `{command}` there gave no agent{ending}: {reason}")
