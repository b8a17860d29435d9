"""How much of the hypervisor's stream is let out: the way is full, and nothing queues on it."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from vmferry.errors import ProtocolError
from vmferry.units import MIB
from vmferry.wire.window import LEAST, MOST, STEP, Window


class Way:
    """A link of ``rate`` bytes/s with a round trip of ``delay`` seconds, on a clock of its own."""

    def __init__(self, rate: float, delay: float) -> None:
        self.now = self.free = 0.0
        self.rate, self.delay = rate, delay
        self.window = Window(lambda: self.now)
        self.acks: deque[tuple[float, int]] = deque()
        self.sent = 0
        self.under_way: list[int] = []

    def send(self, length: int) -> None:
        self.window.sent(length, length)
        self.sent += length
        self.free = max(self.free, self.now) + length / self.rate
        self.acks.append((self.free + self.delay, self.sent))

    def run(self, amount: int) -> float:
        """Send ``amount`` bytes as fast as the window lets; returns the seconds it took."""
        began, end, taken = self.now, self.sent + amount, self.sent
        while taken < end:
            while self.sent < end and self.window.fits(STEP):
                self.send(STEP)
            if self.sent < end:
                self.window._full = True  # as ``wait`` notes it
            self.under_way.append(self.sent - taken)
            self.now, taken = self.acks.popleft()
            self.window.taken(taken)
        return self.now - began


def test_a_long_way_is_filled() -> None:
    way = Way(rate=1e9, delay=0.05)
    way.run(200 * MIB)
    seconds = way.run(1000 * MIB)
    assert seconds < 1.2 * 1000 * MIB / way.rate


def test_a_slow_receiver_has_little_before_it() -> None:
    way = Way(rate=200e6, delay=0.0002)
    way.run(100 * MIB)
    way.under_way.clear()
    way.run(100 * MIB)
    assert max(way.under_way) <= 3 * MIB


def test_it_gets_no_larger_than_agreed_on() -> None:
    way = Way(rate=100e9, delay=0.1)
    way.run(4096 * MIB)
    assert LEAST <= way.window.size <= MOST
    assert max(way.under_way) <= MOST


def test_nothing_grows_that_is_not_used() -> None:
    way = Way(rate=1e9, delay=0.05)
    for _ in range(100):
        way.send(STEP)
        way.now, taken = way.acks.popleft()
        way.window.taken(taken)
    assert way.window.size == LEAST


def test_one_that_is_larger_than_the_window_goes_alone() -> None:
    window = Window(lambda: 0.0)
    assert window.fits(2 * LEAST)
    window.sent(2 * LEAST, 2 * LEAST)
    assert not window.fits(1)


async def test_waiting_ends_when_there_is_room() -> None:
    window = Window(lambda: 0.0)
    window.sent(LEAST, LEAST)
    waiting = asyncio.ensure_future(window.wait(STEP))
    await asyncio.sleep(0)
    window.taken(1)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    window.taken(STEP)
    await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize("total", [0, 99, 100, 1001])
def test_what_cannot_have_been_taken_is_refused(total: int) -> None:
    window = Window(lambda: 0.0)
    window.sent(1000, 1000)
    window.taken(100)
    with pytest.raises(ProtocolError, match=f"Taken: {total} bytes, of 1000, after 100"):
        window.taken(total)


def test_what_is_on_its_way_is_counted_as_it_is_there() -> None:
    window = Window(lambda: 0.0)
    for _ in range(10):
        assert window.fits(LEAST // 10)
        window.sent(LEAST, LEAST // 10)
    assert not window.fits(LEAST // 10)
    window.taken(LEAST)
    assert window.fits(LEAST // 10)


def test_of_a_piece_that_was_taken_in_part_that_part_makes_room() -> None:
    window = Window(lambda: 0.0)
    window.sent(LEAST, LEAST)
    window.taken(LEAST // 2)
    assert window.fits(LEAST // 2)
    assert not window.fits(LEAST // 2 + 1)
    window.taken(LEAST - STEP + 1)
    assert window.fits(LEAST // 2)  # the rest, less than a step, is never told of
