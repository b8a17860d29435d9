"""How often to try to reach a peer again, and for how long."""

from __future__ import annotations

import asyncio

from vmferry.errors import LinkTimeout

__all__ = ["Comeback"]

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class Comeback:
    """Pauses between attempts that grow, and a limit to the time in which nothing is won.

    Args:
        limit: seconds.

    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: float | None = None
        self._pause = _SHORTEST_PAUSE

    async def wait(self, error: Exception, *, moved: bool) -> None:
        """Return when it is time to try again; ``moved`` says that the last attempt won something.

        Raises:
            LinkTimeout: nothing was won for the limit; ``error`` is the last reason.

        """
        now = asyncio.get_running_loop().time()
        if moved or self._since is None:
            self._since, self._pause = now, _SHORTEST_PAUSE
        if now - self._since > self._limit:
            raise LinkTimeout(
                f"nothing went over to the destination for {self._limit:g} seconds: {error}"
            ) from error
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
