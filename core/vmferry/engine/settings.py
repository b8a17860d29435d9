"""What a user can choose about one migration."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vmferry.engine.policy import PolicyOptions
from vmferry.units import KIB, MIB
from vmferry.wire.messages import MAX_CHANNELS

__all__ = ["KeptSettings", "Settings", "with_policy"]

PowerOfTwo = Annotated[int, msgspec.Meta(ge=512, le=16 * MIB)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Choices for one migration; every field has a sound default.

    Attributes:
        block_size: bytes per bit of the dirty maps; a power of two. A tracker may use a larger one.
        piece: most bytes per extent on the wire; a power of two, at least ``block_size``.
        pull_piece: the same for PULL's background push; smaller, so that a block the guest waits
            for is not stuck behind it.
        lanes: bulk lanes.
        memory_channels: further streams for memory, each on a lane of its own.
        depth: extents read ahead per lane.
        bandwidth: bytes per second over all lanes and memory; 0 is no limit.
        compression: ``auto`` judges on samples, ``none``, ``lz4`` or ``zstd``.
        tracker: tracker plugin to use instead of the one the hypervisor suggests; ``""`` keeps it.
        patience: seconds of silence after which the peer counts as gone.
        stall_timeout: seconds in which nothing moves, although the peer answers, after which the
            connection is given up; 0 waits for ever.
        reconnect: seconds to go on trying to reach the peer in PUSH and in PULL; with 0, a
            connection that is lost in PUSH ends the migration.
        pull_limit: most bytes that may be pending at the switch, -1 for any number: if more are
            dirty when the guest stands still, all of them are sent before it runs again.
        round_pause: least seconds between two disk rounds beside the memory pre-copy.
        mark_pause: seconds after which the destination is asked, within a round of PUSH, what has
            come; what was sent since is sent again if the connection is lost.

    """

    block_size: PowerOfTwo = 64 * KIB
    piece: PowerOfTwo = 4 * MIB
    pull_piece: PowerOfTwo = 512 * KIB
    lanes: Annotated[int, msgspec.Meta(ge=1, le=32)] = 2
    memory_channels: Annotated[int, msgspec.Meta(ge=0, le=MAX_CHANNELS)] = 0
    depth: Annotated[int, msgspec.Meta(ge=1, le=16)] = 3
    bandwidth: Annotated[int, msgspec.Meta(ge=0)] = 0
    compression: Annotated[str, msgspec.Meta(pattern="^(auto|none|lz4|zstd)$")] = "auto"
    tracker: str = ""
    patience: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    stall_timeout: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    reconnect: Annotated[float, msgspec.Meta(ge=0)] = 3600.0
    pull_limit: Annotated[int, msgspec.Meta(ge=-1)] = -1
    round_pause: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    mark_pause: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class KeptSettings(Settings, frozen=True, kw_only=True):
    """Those of a job as the source's journal has them in ``facts``.

    Attributes:
        policy: when to stop sending rounds; in the journals of older releases it is missing.

    """

    policy: PolicyOptions = PolicyOptions()


def with_policy(settings: Settings, policy: PolicyOptions | None) -> KeptSettings:
    """``settings`` to be kept, with those of the policy if it has any."""
    known = {name: getattr(settings, name) for name in Settings.__struct_fields__}
    return KeptSettings(**known, policy=policy or PolicyOptions())
