"""Lanes of sessions that are not complete yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmferry.api.transport import PeerInfo
from vmferry.errors import VmferryError
from vmferry_transports.zeromq.connection import ZeromqConnection
from vmferry_transports.zeromq.lane import ZeromqLane
from vmferry_transports.zeromq.messages import Greeting, Refusal

__all__ = ["Group", "Groups"]

_LANES = 1024
"""Most lanes in incomplete groups; beyond, peers are told to try again."""


class Group:
    """The lanes of one session, with their routes."""

    def __init__(self, size: int, peer: PeerInfo, timer: asyncio.TimerHandle) -> None:
        self.size, self.peer, self.timer = size, peer, timer
        self.lanes: dict[int, tuple[bytes, ZeromqLane]] = {}
        self.connection: ZeromqConnection | None = None
        self.error: VmferryError | None = None

    def lose(self, error: VmferryError) -> None:
        """Lose the connection, or the one that is to be."""
        self.error = self.error or error
        if self.connection is not None:
            self.connection.lose(error)


class Groups:
    """Incomplete groups by session; ``drop`` is called for each that takes too long."""

    def __init__(self, timeout: float, drop: Callable[[Group], None]) -> None:
        self._timeout, self._drop = timeout, drop
        self._groups: dict[bytes, Group] = {}

    def refusal(self, greeting: Greeting, peer: PeerInfo) -> Refusal:
        """Say why a lane does not fit."""
        if sum(len(group.lanes) for group in self._groups.values()) >= _LANES:
            return Refusal.BUSY
        group = self._groups.get(greeting.session)
        if group is not None and (
            group.size != greeting.lanes or greeting.lane in group.lanes or group.peer != peer
        ):
            return Refusal.SESSION
        return Refusal.NONE

    def of(self, greeting: Greeting, peer: PeerInfo) -> Group:
        """Return the group of a lane that fits."""
        group = self._groups.get(greeting.session)
        if group is None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._timeout, self._late, greeting.session)
            group = self._groups[greeting.session] = Group(greeting.lanes, peer, timer)
        return group

    def take(self, session: bytes) -> Group:
        """Hand over a group."""
        group = self._groups.pop(session)
        group.timer.cancel()
        return group

    def _late(self, session: bytes) -> None:
        self._drop(self.take(session))

    def close(self) -> None:
        """Drop all groups."""
        for session in list(self._groups):
            self._late(session)
