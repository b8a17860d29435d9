"""The pull disk in random worlds, and what happens if one link is taken out of its argument."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from vmferry.engine import pullcopy
from vmferry.engine.pullcopy import LocalCopy
from vmferry.engine.pulldisk import PullStats
from vmferry.engine.pullfetch import Fetcher
from vmferry.engine.pullsave import MapKeeper
from vmferry.engine.rangelock import Hold, RangeLock

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("faults", [False, True])
def test_no_interleaving_shows_or_keeps_anything_wrong(
    faults: bool, run_world: Callable[[int, bool], PullStats]
) -> None:
    totals: dict[str, float] = {}
    for seed in range(150):
        stats = run_world(seed, faults)
        for name in ("on_demand", "fetched_blocks", "arrived", "late", "overwritten"):
            totals[name] = totals.get(name, 0) + getattr(stats, name)
    assert all(totals.values()), f"the worlds never saw: {totals}"


# -- mutants: each takes one link out of the argument and must be found


class _Unlocked(RangeLock):
    async def acquire(self, offset: int, length: int) -> Hold:
        return Hold(offset, length)

    def release(self, hold: Hold) -> None:
        pass


async def _clear_first(self: LocalCopy, offset: int, length: int, data: memoryview | None) -> None:
    self._clear(offset, length)
    if data is None:
        await self._volume.write_zeroes(offset, length)
    else:
        await self._volume.write(offset, data)


async def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


async def _write_unclaimed(self: LocalCopy, offset: int, length: int, write: Any) -> None:
    await write()
    self._clear(offset, length)


async def _write_uncleared(self: LocalCopy, offset: int, length: int, write: Any) -> None:
    await write()


async def _map_before_data(self: MapKeeper, *, save_map: bool) -> None:
    snapshot = self._pending.copy()
    await self._save(snapshot.encode())
    await self._volume.flush()
    self._saved, self._saved_writes, self._saved_changes = snapshot, self._writes, self._changes


async def _map_copied_late(self: MapKeeper, *, save_map: bool) -> None:
    writes, changes = self._writes, self._changes
    await self._volume.flush()
    snapshot = self._pending.copy()
    await self._save(snapshot.encode())
    self._saved, self._saved_writes, self._saved_changes = snapshot, writes, changes


async def _all_at_once(self: MapKeeper, batch: Any) -> None:
    self._next = None
    await self._sync(save_map=batch.save_map)


async def _drop_unzeroed(self: LocalCopy, offset: int, length: int) -> None:
    self._clear(offset, length)


_real_discard = LocalCopy.discard


async def _discard_outwards(self: LocalCopy, offset: int, length: int) -> None:
    await _real_discard(self, offset, length)
    block = self._pending.block_size
    start, stop = offset // block * block, -(-(offset + length) // block) * block
    self._clear(start, min(stop, self._pending.size) - start)


async def _store_all(self: LocalCopy, offset: int, length: int, data: memoryview | None) -> None:
    await self._store_run(offset, length, data)


async def _await_only(work: Awaitable[None]) -> None:
    await work


def _ignore(*args: Any) -> None:
    pass


def _lost_silently(self: Fetcher, offset: int, length: int) -> None:
    self._coming.clear(offset, length)


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "claim removed": (pullcopy, "RangeLock", _Unlocked),
    "cleared before it is written": (LocalCopy, "_store_run", _clear_first),
    "partial write without a fetch": (LocalCopy, "_fetch_edges", _nothing),
    "read without a fetch": (Fetcher, "make_local", _nothing),
    "whole write without a claim": (LocalCopy, "_write_whole", _write_unclaimed),
    "whole write leaves the block pending": (LocalCopy, "_write_whole", _write_uncleared),
    "late data is stored": (LocalCopy, "_store", _store_all),
    "lock let go at cancellation": (pullcopy, "uninterrupted", _await_only),
    "map saved before the data": (MapKeeper, "_sync", _map_before_data),
    "map copied after the flush": (MapKeeper, "_sync", _map_copied_late),
    "saves overtake each other": (MapKeeper, "_run", _all_at_once),
    "flush does not save the map": (MapKeeper, "wrote", _ignore),
    "discard clears partial blocks": (LocalCopy, "discard", _discard_outwards),
    "discard shows what was there": (LocalCopy, "_drop", _drop_unzeroed),
    "nobody asks again": (Fetcher, "retry", _lost_silently),
}


@pytest.mark.mutant
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, goes_wrong: Callable[[int], bool]
) -> None:
    monkeypatch.setattr(*MUTANTS[name])
    assert any(goes_wrong(seed) for seed in range(150)), f"{name}: not found"
