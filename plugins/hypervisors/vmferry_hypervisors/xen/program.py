"""xl(1) run for as long as a migration takes, with what it complains of kept for errors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from typing import IO

from vmferry.errors import HypervisorError

__all__ = ["Program"]

_SHOWN = 1500
_NOISE = ("xc: progress", "Saving to migration stream", "Loading new save file")


class Program:
    """A program of its own session, so that Ctrl-C does not end it before its time.

    Attributes:
        argv: as it was called.

    """

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self._process: asyncio.subprocess.Process | None = None
        self._errors: IO[bytes] | None = None

    async def start(self, stdin: int | None = None, stdout: int | None = None) -> None:
        """Start it, with these descriptors, which stay the caller's, or ``/dev/null``."""
        errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the program
        nothing = asyncio.subprocess.DEVNULL
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=nothing if stdin is None else stdin,
                stdout=nothing if stdout is None else stdout,
                stderr=errors,
                start_new_session=True,
            )
        except FileNotFoundError:
            errors.close()
            raise HypervisorError(
                f"the program {self.argv[0]} is not installed; install xen-utils"
            ) from None
        except BaseException:
            errors.close()
            raise
        self._errors = errors

    @property
    def code(self) -> int | None:
        """Its exit code; ``None`` while it runs or before it was started."""
        return self._process.returncode if self._process else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    def complaint(self) -> str:
        """The last of what it wrote to stderr, for an error message."""
        if self._errors is None or self._errors.closed:
            return ""
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), 4 * _SHOWN, max(0, size - 4 * _SHOWN))
        lines = tail.decode(errors="replace").replace("\r", "\n").splitlines()
        kept = [line for line in lines if line.strip() and not line.startswith(_NOISE)]
        return "\n".join(kept)[-_SHOWN:]

    def failure(self, what: str) -> HypervisorError:
        """An error that says what did not succeed and what the program had to say."""
        end = f"; it ended with code {self.code}" if self.code is not None else ""
        said = self.complaint()
        name = " ".join(self.argv[:2])
        return HypervisorError(f"{what}: `{name}`{end}{f': {said}' if said else ''}")

    async def ended(self, timeout: float | None = None) -> bool:
        """Wait for its end; whether it came within ``timeout`` seconds."""
        if self._process is None:
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    async def kill(self) -> None:
        """End it, and the helpers it started, at once; it does not get to clean up."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    def close(self) -> None:
        """Forget what it wrote. May be called twice."""
        if self._errors is not None:
            self._errors.close()
