"""Threads that move bulk data step back behind the event loop and the control lane."""

from __future__ import annotations

import os
import threading

__all__ = ["step_back"]

_STEP = 5
_LOWEST = 19


def step_back() -> None:
    """Lower the calling thread's priority (``setpriority(2)`` takes a thread's id on Linux).

    A guest's request for a single block then need not wait until a disk's worth of data has had
    its share of a busy processor. It goes down from where it is: nobody but root may go up.
    """
    me = threading.get_native_id()
    nice = os.getpriority(os.PRIO_PROCESS, me)
    os.setpriority(os.PRIO_PROCESS, me, min(nice + _STEP, _LOWEST))
