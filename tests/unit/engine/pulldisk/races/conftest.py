"""A world for the pull disk: random concurrency, judged sector by sector by an oracle.

Everything runs on ``sleep(0)``, so that a seed is one exact interleaving. A volume here is as bad
as its contract allows, and worse in one thing: writes are torn, reads see writes under way, nothing
is durable before a flush, and a cancelled write goes on behind its caller's back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from vmferry.api import Geometry, Volume
from vmferry.dirtymap import DirtyMap
from vmferry.engine.pulldisk import PullDisk, PullStats
from vmferry.errors import ConnectionLost

SECTOR, BLOCK = 512, 2048
PER_BLOCK = BLOCK // SECTOR
SECTORS = 10 * PER_BLOCK + 2
SIZE = SECTORS * SECTOR
ZERO, JUNK, STALE, POISON, SOURCE, GUEST = 0, 7, 1000, 2000, 3000, 4000
_FOREVER = 1 << 60
_STEPS = 10_000


class Wrong(AssertionError):
    """The guest saw, or would find after a crash, what it never should."""


def fill(value: int) -> bytes:
    return value.to_bytes(8, "little") * (SECTOR // 8)


def pack(values: list[int]) -> bytearray:
    return bytearray(b"".join(map(fill, values)))


def unpack(data: bytes | bytearray | memoryview) -> list[int]:
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), SECTOR)]


@dataclass
class Write:
    """What may be found in a sector from ``start`` on; it replaces all that ended before."""

    value: int
    start: int
    end: int = _FOREVER


class Oracle:
    """All that was ever written to each sector, and when."""

    def __init__(self, source: list[int]) -> None:
        self.now = 0
        self.flushed = 0
        self.history = [[Write(value, -1, -1)] for value in source]

    def tick(self) -> int:
        self.now += 1
        return self.now

    def begin(self, sectors: range, values: list[int]) -> list[Write]:
        start = self.tick()
        writes = [Write(value, start) for value in values]
        for sector, write in zip(sectors, writes, strict=True):
            self.history[sector].append(write)
        return writes

    def end(self, writes: list[Write]) -> None:
        now = self.tick()
        for write in writes:
            write.end = now

    def check(self, what: str, sector: int, value: int, horizon: int) -> None:
        """``value`` may be there unless a later write was complete at ``horizon``."""
        history = self.history[sector]
        for write in history:
            replaced = any(w.start > write.end and w.end < horizon for w in history)
            if write.value == value and not replaced:
                return
        raise Wrong(f"{what}: sector {sector} holds {value}, written were {history}")


class BadVolume(Volume):
    def __init__(self, rng: random.Random, cache: list[int], faults: bool) -> None:
        self.rng, self.cache, self.faults = rng, cache, faults
        self.durable = list(cache)
        self.flushes = self.newest = 0
        self.zombies: set[asyncio.Task[None]] = set()

    @property
    def geometry(self) -> Geometry:
        return Geometry(SIZE, SECTOR)

    async def delay(self, most: int = 4) -> None:
        for _ in range(self.rng.randrange(most)):
            await asyncio.sleep(0)

    def order(self, offset: int, length: int) -> list[int]:
        sectors = list(range(offset // SECTOR, (offset + length) // SECTOR))
        self.rng.shuffle(sectors)
        return sectors

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        for sector in self.order(offset, len(buffer)):
            at = sector * SECTOR - offset
            buffer[at : at + SECTOR] = fill(self.cache[sector])
            await self.delay(2)

    async def write(self, offset: int, data: memoryview) -> None:
        def value(sector: int) -> int:
            at = sector * SECTOR - offset
            return int.from_bytes(data[at : at + 8], "little")

        await self.behind(self.set(offset, len(data), value))

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        await self.behind(self.set(offset, length, lambda _: ZERO))

    async def discard(self, offset: int, length: int) -> None:
        await self.behind(self.set(offset, length, lambda _: JUNK))

    async def behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.zombies.add(task)
        task.add_done_callback(self.buried)
        await asyncio.shield(task)

    def buried(self, task: asyncio.Task[None]) -> None:
        self.zombies.discard(task)
        task.exception()  # its caller may be gone

    async def set(self, offset: int, length: int, value: Callable[[int], int]) -> None:
        await self.delay(self.rng.choice([4, 4, 4, 100]))
        for sector in self.order(offset, length):
            if self.faults and self.rng.random() < 0.01:
                raise OSError(5, "the volume failed")
            self.cache[sector] = value(sector)
            await self.delay(2)

    async def flush(self) -> None:
        self.flushes += 1
        mine, completed = self.flushes, list(self.cache)
        await self.delay(12)
        if mine > self.newest:
            self.newest, self.durable = mine, completed

    async def close(self) -> None:
        pass

    def after_crash(self) -> list[int]:
        pairs = zip(self.durable, self.cache, strict=True)
        return [self.rng.choice(pair) for pair in pairs]


class World:
    """A guest, its source, a link that breaks, and crashes looked at without happening."""

    def __init__(self, seed: int, faults: bool) -> None:
        self.rng = rng = random.Random(seed)
        self.source = [SOURCE + s for s in range(SECTORS)]
        for sector in range(3 * PER_BLOCK, 4 * PER_BLOCK):
            self.source[sector] = ZERO
        self.oracle = Oracle(self.source)
        self.pending = DirtyMap(SIZE, BLOCK)
        for block in range(11):
            if rng.random() < 0.7:
                self.pending.mark(block * BLOCK, 1)
        cache = [
            STALE if self.pending.any(s * SECTOR, SECTOR) else self.source[s]
            for s in range(SECTORS)
        ]
        self.volume = BadVolume(rng, cache, faults)
        self.saved = b""
        self.faults, self.values = faults, GUEST
        self.asked: list[tuple[int, int]] = []
        self.up, self.over, self.pushes = True, False, rng.random() < 0.5
        self.arrivals: set[asyncio.Task[None]] = set()
        ahead = rng.choice([0, BLOCK, 3 * BLOCK])
        self.disk = PullDisk(
            self.volume, BLOCK, self.save, self.fetch, read_ahead=ahead, max_fetch=2 * BLOCK
        )

    async def save(self, encoded: bytes) -> None:
        early = self.rng.random() < 0.5
        if early:
            self.saved = encoded
        await self.volume.delay(self.rng.choice([4, 12, 100]))
        if not early:
            self.saved = encoded

    async def fetch(self, offset: int, length: int) -> None:
        await self.volume.delay()
        if not self.up:
            raise ConnectionLost("the link is down")
        self.asked.append((offset, length))

    # -- the guest

    def some_range(self) -> tuple[int, int]:
        first = self.rng.randrange(SECTORS)
        if self.rng.random() < 0.4:
            first -= first % PER_BLOCK
        count = self.rng.choice([1, 2, 3, PER_BLOCK, PER_BLOCK, PER_BLOCK + 1, 3 * PER_BLOCK])
        return first, min(count, SECTORS - first)

    async def guest(self, requests: int) -> None:
        kinds = [self.read] * 5 + [self.write] * 5 + [self.zero, self.discard, self.flush]
        for _ in range(requests):
            await self.maybe_cancelled(self.rng.choice(kinds)())
            await self.volume.delay(8)

    async def maybe_cancelled(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        if self.rng.random() < 0.1:
            await self.volume.delay(12)
            task.cancel()
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            error = task.exception()
            if error and not (self.faults and isinstance(error, OSError)):
                raise error

    async def read(self) -> None:
        first, count = self.some_range()
        buffer = bytearray(count * SECTOR)
        begun = self.oracle.tick()
        await self.disk.read_into(first * SECTOR, memoryview(buffer))
        for sector, value in enumerate(unpack(buffer), first):
            self.oracle.check("read", sector, value, begun)

    async def write(self) -> None:
        first, count = self.some_range()
        self.values += 1
        values = [self.values] * count
        data = memoryview(pack(values))
        await self.change(first, values, self.disk.write(first * SECTOR, data))

    async def zero(self) -> None:
        first, count = self.some_range()
        work = self.disk.write_zeroes(first * SECTOR, count * SECTOR)
        await self.change(first, [ZERO] * count, work)

    async def change(self, first: int, values: list[int], work: Awaitable[None]) -> None:
        writes = self.oracle.begin(range(first, first + len(values)), values)
        await work
        self.oracle.end(writes)

    async def discard(self) -> None:
        first, count = self.some_range()
        for value in (ZERO, JUNK):
            self.oracle.begin(range(first, first + count), [value] * count)
        await self.disk.discard(first * SECTOR, count * SECTOR)

    async def flush(self) -> None:
        begun = self.oracle.tick()
        await self.disk.flush()
        self.oracle.flushed = max(self.oracle.flushed, begun)

    # -- the source

    async def answer(self) -> None:
        while not self.over:
            await self.volume.delay(6)
            if self.asked and self.up:
                for _ in range(self.rng.choice([1, 1, 1, 2])):
                    self.deliver(*self.rng.choice(self.asked))
                if self.rng.random() < 0.7:
                    self.asked.pop(0)
            elif self.up and self.pushes and self.rng.random() < 0.1:
                block = self.rng.randrange(11)
                offset = block * BLOCK
                self.deliver(offset, min(self.rng.randint(1, 4) * BLOCK, SIZE - offset))
            else:
                await asyncio.sleep(0)

    def deliver(self, offset: int, length: int) -> None:
        task = asyncio.ensure_future(self.arrive(offset, length))
        self.arrivals.add(task)
        task.add_done_callback(self.arrivals.discard)

    async def arrive(self, offset: int, length: int) -> None:
        await self.volume.delay(20)
        values = self.source[offset // SECTOR : (offset + length) // SECTOR]
        buffer = pack(values) if any(values) else None
        work = self.disk.arrive(offset, length, buffer)
        await self.maybe_cancelled(work)
        if buffer is not None:
            buffer[:] = fill(POISON) * len(values)

    async def links(self) -> None:
        while not self.over:
            await self.volume.delay(150)
            self.up = False
            self.asked.clear()
            self.disk.link_lost()
            await self.volume.delay(60)
            self.up = True
            self.disk.link_restored(self.fetch)
            await asyncio.sleep(0)

    async def crashes(self) -> None:
        while not self.over:
            await self.volume.delay(10)
            await asyncio.sleep(0)
            self.check_crash()
            if self.rng.random() < 0.1:
                await self.disk.checkpoint()

    def check_crash(self) -> None:
        pending = DirtyMap.decode(self.saved, size=SIZE, block_size=BLOCK)
        for sector, value in enumerate(self.volume.after_crash()):
            found = self.source[sector] if pending.any(sector * SECTOR, 1) else value
            self.oracle.check("crash", sector, found, self.oracle.flushed)

    # -- the whole

    async def run(self) -> None:
        await self.disk.ready(self.pending)
        async with asyncio.TaskGroup() as group:
            for work in (self.answer(), self.links(), self.crashes(), self.watch()):
                group.create_task(work)
            async with asyncio.TaskGroup() as guests:
                for _ in range(4):
                    guests.create_task(self.guest(12))
            await self.finish()
            self.over = True
        while late := [*self.arrivals, *self.volume.zombies]:
            await asyncio.wait(late)

    async def watch(self) -> None:
        """Nothing waits for ever. Counted in steps, so that a busy machine changes nothing."""
        for _ in range(_STEPS):
            if self.over:
                return
            await asyncio.sleep(0)
        raise Wrong(f"it hangs: {self.disk.outstanding()} are waited for")

    async def finish(self) -> None:
        """All that is left arrives; then the disk holds what it should, also after a crash."""
        for offset, length in self.disk.pending().runs():
            while self.disk.pending().any(offset, length):
                with contextlib.suppress(OSError):
                    values = self.source[offset // SECTOR : (offset + length) // SECTOR]
                    await self.disk.arrive(offset, length, pack(values))
        await self.disk.wait_local()
        await self.disk.checkpoint()
        saved = DirtyMap.decode(self.saved, size=SIZE, block_size=BLOCK)
        assert not saved
        begun = self.oracle.tick()
        buffer = bytearray(SIZE)
        await self.disk.read_into(0, memoryview(buffer))
        for sector, value in enumerate(unpack(buffer)):
            self.oracle.check("end", sector, value, begun)
        await self.disk.drained()


@pytest.fixture
def run_world() -> Callable[[int, bool], PullStats]:
    """Runs the world of a seed, with a volume that fails now and then or not; raises if wrong."""

    def run(seed: int, faults: bool) -> PullStats:
        async def main() -> PullStats:
            world = World(seed, faults)
            await world.run()
            return world.disk.stats

        return asyncio.run(main())

    return run


@pytest.fixture
def goes_wrong(run_world: Callable[[int, bool], PullStats]) -> Callable[[int], bool]:
    """Whether the oracle objects to the world of a seed."""

    def judge(seed: int) -> bool:
        wrong = False
        try:
            run_world(seed, False)
        except* Wrong:
            wrong = True
        return wrong

    return judge
