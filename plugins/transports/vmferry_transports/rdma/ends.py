"""The near ends of all lanes of a connection: made, told to the peer, connected, let go of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from vmferry.api.transport import Limits
from vmferry_transports.rdma.greeting import Endpoint, Greeting
from vmferry_transports.rdma.landing import SENDS, SPARE, Landing
from vmferry_transports.rdma.options import RdmaOptions
from vmferry_transports.rdma.providers.base import Provider, QueuePair, Remote
from vmferry_transports.rdma.takeoff import Takeoff

__all__ = ["Ends", "close_all"]


class Ends:
    """A device with a queue pair and memory for each lane.

    Args:
        provider: opens the device.
        lanes: how many.
        limits: of this end.
        options: of this end.
        there: most writes that may be under way to the peer, which is its number of slots.

    Raises:
        LinkError: no device, or not enough memory.

    """

    def __init__(
        self, provider: Provider, lanes: int, limits: Limits, options: RdmaOptions, there: int
    ) -> None:
        self._options, self._device = options, provider.open()
        self._queues: list[QueuePair] = []
        self._landings: list[Landing] = []
        self._takeoffs: list[Takeoff] = []
        try:
            for _ in range(lanes):
                landing = Landing(self._device, limits, options.slot, options.slots)
                self._landings.append(landing)
                self._queues.append(
                    self._device.queue_pair(landing.zone, SENDS + SPARE + there, landing.posted)
                )
                landing.start(self._queues[-1])
        except BaseException:
            self.close()
            raise

    def endpoints(self) -> list[Endpoint]:
        """What the peer must know."""
        return [queue.endpoint().endpoint for queue in self._queues]

    def descriptors(self) -> list[int]:
        """What the peer must be given beside it; they stay this end's to close."""
        return [one for queue in self._queues for one in queue.endpoint().descriptors]

    def told(self) -> None:
        """Let go of what was only there to be given; the peer has it."""
        for queue in self._queues:
            queue.told()

    def connect(self, greeting: Greeting, descriptors: Sequence[int]) -> None:
        """Connect to the peer's ends, and take over its descriptors, also on failure.

        Raises:
            LinkError: what the peer gave cannot be used.

        """
        left = list(descriptors)
        each = len(left) // max(1, len(self._queues))
        try:
            for queue, endpoint in zip(self._queues, greeting.endpoints, strict=True):
                given, left = left[:each], left[each:]
                queue.connect(Remote(endpoint, given))
                self._takeoffs.append(Takeoff(self._device, greeting.slot, greeting.slots))
        finally:
            close_all(left)

    def parts(self) -> Iterator[tuple[QueuePair, Landing, Takeoff]]:
        """Give the parts of each lane."""
        return zip(self._queues, self._landings, self._takeoffs, strict=True)

    def close(self) -> None:
        """Let go of everything. May be called twice."""
        for queue in self._queues:
            queue.close()
        for landing in self._landings:
            landing.close()
        for takeoff in self._takeoffs:
            takeoff.close()
        self._device.close()


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)
