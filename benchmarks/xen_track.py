"""Runs in a host of the laboratory: tracks the disk of GUEST with TRACKER, now and then.

``python xen_track.py GUEST TRACKER`` begins with SIGUSR1 and stops with the next, and says
``tracking`` and ``stopped``. After SIGUSR2 it says ``harvesting``, harvests every five seconds and
forgets what it got. SIGINT ends it. Starting Python once is enough: under emulation that takes as
long as a measurement.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from vmferry.api.guest import Disk
from vmferry.plugins import load
from vmferry_hypervisors.xen.driver import XenHypervisor

EVERY = 5.0


async def track(
    tracker: Any, disk: Disk, toggled: asyncio.Event, harvesting: asyncio.Event
) -> None:
    """Until it is toggled."""
    toggled.clear()
    harvesting.clear()
    await tracker.start(disk, 65536)
    try:
        print("tracking", flush=True)
        while not toggled.is_set():
            try:
                await asyncio.wait_for(toggled.wait(), EVERY)
            except TimeoutError:
                if harvesting.is_set():
                    await tracker.harvest()
                    print("harvesting", flush=True)
    finally:
        await tracker.stop()
    print("stopped", flush=True)


async def main(guest: str, name: str) -> None:
    """Until SIGINT."""
    toggled, harvesting, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, toggled.set)
    loop.add_signal_handler(signal.SIGUSR2, harvesting.set)
    loop.add_signal_handler(signal.SIGINT, ended.set)
    (disk,) = (await XenHypervisor().describe(guest)).disks
    print("stopped", flush=True)
    end = loop.create_task(ended.wait())
    while not ended.is_set():
        begin = loop.create_task(toggled.wait())
        await asyncio.wait({begin, end}, return_when=asyncio.FIRST_COMPLETED)
        if begin.done():
            await track(load("tracker", name), disk, toggled, harvesting)
            toggled.clear()
        else:
            begin.cancel()
    print("ended", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
