"""A connection some of whose lanes are ssh processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vmferry.api.transport import Limits, PeerInfo
from vmferry_transports.ssh.program import SshProcess
from vmferry_transports.tcp.connection import TcpConnection
from vmferry_transports.tcp.link import Link

__all__ = ["SshConnection"]


class SshConnection(TcpConnection):
    """The caller's end; it owns the processes. On return of ``close`` none is left."""

    def __init__(
        self,
        links: Sequence[Link],
        limits: Limits,
        peer: PeerInfo,
        close_timeout: float,
        processes: Sequence[SshProcess],
    ) -> None:
        self._processes, self._patience = processes, close_timeout
        super().__init__(links, limits, peer, close_timeout)

    async def close(self) -> None:
        """End all lanes, then wait for ssh to end."""
        try:
            await super().close()
        finally:
            await asyncio.gather(*(each.close(self._patience) for each in self._processes))

    def abort(self) -> None:
        """End all lanes and every ssh at once."""
        super().abort()
        for process in self._processes:
            process.end()
