"""What a simulated hypervisor is like, in right variants and in wrong ones."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

__all__ = ["HypervisorParameters", "Lapse"]


class Lapse(enum.Enum):
    """What a wrong hypervisor does wrong."""

    NONE = "none"
    SKIPS_LAST_PAGES = "does not send the pages written since the last round"
    STALE_STATE = "sends the registers as they were when memory pre-copy began"
    RUNS_ON = "does not stop the guest"
    DROPS_OUTSTANDING = "takes outstanding writes for done though they were dropped"


class HypervisorParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What a hypervisor is like.

    Attributes:
        rounds: most rounds of memory pre-copy.
        few: dirty pages with which pre-copy ends.
        delay: longest time in seconds that suspending and starting a guest takes.
        own_go: the stream has a go of its own, which ``activate`` waits for unless the stream is
            gone.
        suspends_itself: pre-copy ends with the guest suspended.
        reissues: the guest submits outstanding requests again at the destination, as paravirtual
            frontends do; otherwise it takes outstanding writes for done, as emulated disks do.
        serves: the guest's disks are read through what runs it, which ends only once nobody has
            them open, and with which they are out of reach.
        outlives: a guest that has arrived and has not run is still there when its agent has died.
        lapse: what it does wrong.

    """

    rounds: int = 4
    few: int = 16
    delay: Annotated[float, msgspec.Meta(ge=0)] = 0.005
    own_go: bool = False
    suspends_itself: bool = False
    reissues: bool = True
    serves: bool = False
    outlives: bool = True
    lapse: Lapse = Lapse.NONE
