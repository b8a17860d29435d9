"""Programs run to their end, with errors that say which and why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vmferry.errors import VmferryError

__all__ = ["CommandFailed", "CommandMissing", "run"]

_SHOWN = 2000
"""Characters of a program's complaint that go into an error."""


class CommandFailed(VmferryError):
    """A program ended badly or took too long.

    Attributes:
        code: its exit code; ``None`` if it was ended for taking too long.
        output: what it wrote to stdout.
        complaint: what it wrote to stderr.

    """

    def __init__(self, argv: Sequence[str], code: int | None, output: str, complaint: str) -> None:
        reason = "took too long" if code is None else f"ended with code {code}"
        said = (complaint.strip() or output.strip())[-_SHOWN:]
        super().__init__(f"`{' '.join(argv)}` {reason}{f': {said}' if said else ''}")
        self.code, self.output, self.complaint = code, output, complaint


class CommandMissing(VmferryError):
    """A program is not installed; the message says which."""


async def run(*argv: str, stdin: str = "", timeout: float = 30.0) -> str:
    """Run a program to its end and return what it wrote to stdout, decoded leniently.

    Args:
        argv: the program and its arguments; no shell is involved.
        stdin: what it reads.
        timeout: seconds after which it is killed.

    Raises:
        CommandMissing: there is no such program.
        CommandFailed: it ended with a code other than 0, or was killed.

    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise CommandMissing(f"the program {argv[0]} is not installed") from None
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(stdin.encode())
    except BaseException as error:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise CommandFailed(argv, None, "", "") from None
        raise
    output, complaint = out.decode(errors="replace"), err.decode(errors="replace")
    if process.returncode:
        raise CommandFailed(argv, process.returncode, output, complaint)
    return output
