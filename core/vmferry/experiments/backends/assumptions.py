"""What the model takes for granted; a file's table ``[model]`` may say otherwise."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vmferry.api import Options

__all__ = ["Assumptions"]

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]


class Assumptions(Options, frozen=True, kw_only=True):
    """Constants of the model.

    Attributes:
        copy_rate: bytes per second that the hosts can read, hash, write, whatever the link carries.
        latency: seconds each way where the matrix says 0.
        handshake: seconds of the handshake beside its round trips.
        round_cost: seconds that each round costs beside its bytes: the harvest and the barrier.
        round_pause: least seconds between disk rounds beside the memory.
        stop: seconds of STOP beside what is sent: suspend, drain, flush, journal, start.
        connections: bulk connections, which share a lossy link.
        memory_rounds: most rounds of memory.
        memory_enough: bytes of dirty memory with which it is stopped.
        full_speed: bytes per second that a guest at full speed writes.
        converged: seconds of sending that count as little enough without PULL.

    """

    copy_rate: Annotated[Positive, Meta(extra={"unit": "bytes/s"})] = 1e9
    latency: Annotated[NotNegative, Meta(extra={"unit": "seconds"})] = 50e-6
    handshake: Annotated[NotNegative, Meta(extra={"unit": "seconds"})] = 0.3
    round_cost: Annotated[NotNegative, Meta(extra={"unit": "seconds"})] = 0.02
    round_pause: Annotated[NotNegative, Meta(extra={"unit": "seconds"})] = 0.5
    stop: Annotated[NotNegative, Meta(extra={"unit": "seconds"})] = 0.05
    connections: Annotated[int, Meta(ge=1)] = 2
    memory_rounds: Annotated[int, Meta(ge=1)] = 30
    memory_enough: Annotated[int, Meta(ge=0, extra={"unit": "bytes"})] = 1 << 20
    full_speed: Annotated[Positive, Meta(extra={"unit": "bytes/s"})] = 200e6
    converged: Annotated[Positive, Meta(extra={"unit": "seconds"})] = 0.03
