"""Bulk work steps back from whatever priority it was given."""

from __future__ import annotations

import os
import threading

import pytest

from vmferry.engine.context import ThreadWorkers
from vmferry_support.priority import step_back


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.parametrize(("before", "after"), [(7, 12), (17, 19), (19, 19)])
def test_from_a_lower_priority_a_thread_goes_lower_still(before: int, after: int) -> None:
    """To an absolute value it might have to go up, which is forbidden to all but root."""
    found = []

    def work() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(before, niceness()))
        step_back()
        found.append(niceness())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] >= after


async def test_workers_have_less_than_who_made_them() -> None:
    workers = ThreadWorkers(1)
    try:
        assert await workers.run(niceness) == min(niceness() + 5, 19)
    finally:
        workers.close()
