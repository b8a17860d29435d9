"""Sockets of sessions whose lanes are not all there yet."""

from __future__ import annotations

import asyncio
import logging

from vmferry.api.transport import PeerInfo
from vmferry.errors import LinkError
from vmferry_transports.tcp.greeting import Greeting
from vmferry_transports.tcp.link import Link
from vmferry_transports.tcp.opening import Opening

__all__ = ["Group", "Groups"]

_log = logging.getLogger("vmferry_transports.tcp")

_SOCKETS = 1024
"""Most sockets in incomplete groups; beyond, the oldest group is dropped."""


class Group:
    """The sockets of one session."""

    def __init__(self, lanes: int, peer: PeerInfo) -> None:
        self.lanes, self.peer = lanes, peer
        self.openings: dict[int, Opening] = {}
        self.timer: asyncio.TimerHandle | None = None

    def links(self) -> list[Link]:
        """Hand over all sockets, in the order of their lanes."""
        return [self.openings[lane].link() for lane in range(self.lanes)]

    def close(self) -> None:
        """Close all its sockets."""
        for opening in self.openings.values():
            opening.close()


class Groups:
    """Incomplete groups by session; each is dropped when it is not complete in ``timeout``."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._groups: dict[bytes, Group] = {}

    def fits(self, greeting: Greeting, identity: str) -> bool:
        """True when the lane belongs to its session: not there yet, and of the same peer."""
        group = self._groups.get(greeting.session)
        return group is None or (
            greeting.lanes == group.lanes
            and greeting.lane not in group.openings
            and identity == group.peer.identity
        )

    def add(self, greeting: Greeting, opening: Opening, name: str) -> Group | None:
        """Take over a socket; return its group when that is complete.

        Raises:
            LinkError: the lane does not fit (another came first).

        """
        if not self.fits(greeting, opening.identity):
            raise LinkError("refused: two sockets for one lane")
        group = self._groups.get(greeting.session) or self._start(greeting, opening, name)
        group.openings[greeting.lane] = opening
        if len(group.openings) < group.lanes:
            return None
        self._remove(greeting.session)
        return group

    def _start(self, greeting: Greeting, opening: Opening, name: str) -> Group:
        if sum(len(each.openings) for each in self._groups.values()) >= _SOCKETS:
            self._drop(next(iter(self._groups)))
        peer = PeerInfo(address=name, identity=opening.identity, encrypted=opening.encrypted)
        group = self._groups[greeting.session] = Group(greeting.lanes, peer)
        loop = asyncio.get_running_loop()
        group.timer = loop.call_later(self._timeout, self._drop, greeting.session)
        return group

    def _remove(self, session: bytes) -> Group:
        group = self._groups.pop(session)
        if group.timer is not None:
            group.timer.cancel()
        return group

    def _drop(self, session: bytes) -> None:
        group = self._remove(session)
        _log.warning(
            "%s: only %d of %d lanes came in time; dropped",
            group.peer.address,
            len(group.openings),
            group.lanes,
        )
        group.close()

    def close(self) -> None:
        """Drop all groups."""
        for session in list(self._groups):
            self._remove(session).close()
