"""Turns of the background push while the guest waits for single blocks again and again.

Both want the same processors and the same link. A guest that asks for one block after the other
gets its answers two to three times as fast while the push rests; but the push must not rest for as
long as the guest reads, or PULL would not end. So they take turns, and the guest goes first.
"""

from __future__ import annotations

import asyncio

__all__ = ["Turns"]

_REST, _GO = 0.06, 0.02
"""Seconds that the push rests and goes on, in turn, while the guest keeps asking."""
_LINGER = 0.002
"""Seconds after an answer in which a guest that reads one block after the other asks again."""
_LOOK = 0.001
"""Seconds between two looks at whether the push may go on."""


class Turns:
    """Says when the push may begin another piece. Belongs to one event loop."""

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._waiting = 0
        self._quiet_from = 0.0
        self._began = 0.0

    def asked(self) -> None:
        """The guest waits for one more request."""
        now = self._time()
        if not self._waiting and now >= self._quiet_from:
            self._began = now
        self._waiting += 1

    def answered(self) -> None:
        """One request was answered."""
        self._waiting -= 1
        self._quiet_from = self._time() + _LINGER

    async def push(self) -> None:
        """Return when the push may go on."""
        while self._rests():  # noqa: ASYNC110 - time is what is waited for
            await asyncio.sleep(_LOOK)

    def _rests(self) -> bool:
        now = self._time()
        if not self._waiting and now >= self._quiet_from:
            return False
        return (now - self._began) % (_REST + _GO) < _REST
