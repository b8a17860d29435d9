"""What a guest does: its own chance, which travels with it, and the requests it leads to."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vmferry.simulation.table import Kind

__all__ = ["Dice", "Workload"]

_MASK = (1 << 64) - 1
Weight = Annotated[int, msgspec.Meta(ge=0)]


class Dice(msgspec.Struct):
    """A generator whose state is one number (splitmix64)."""

    state: int

    def roll(self) -> int:
        """64 random bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self.state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound - 1``."""
        return self.roll() % bound

    def fraction(self) -> float:
        """A number from 0 up to 1."""
        return (self.roll() >> 11) / (1 << 53)


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest does with its disks and memory.

    Attributes:
        workers: requests outstanding per disk.
        think: mean seconds between an answer and the worker's next request.
        block: bytes that whole requests are multiples of.
        largest: most blocks of a request.
        write, partial, read, zero, discard, flush: how often which request is made, relatively;
            a partial write is of single sectors at any sector.
        hot: chance that a request goes to the hot part of the disk.
        hot_part: share of the disk that is hot.
        pages: pages of memory written with every request.
        eager: requests of each worker after which it thinks a hundred times as long, so that a
            simulation that waits for something costs little.

    """

    workers: Annotated[int, msgspec.Meta(ge=0)] = 4
    think: Annotated[float, msgspec.Meta(ge=0)] = 0.002
    block: int = 4096
    largest: Annotated[int, msgspec.Meta(ge=1)] = 8
    write: Weight = 50
    partial: Weight = 15
    read: Weight = 25
    zero: Weight = 4
    discard: Weight = 2
    flush: Weight = 4
    hot: float = 0.7
    hot_part: float = 0.1
    pages: Annotated[int, msgspec.Meta(ge=0)] = 2
    eager: int = 1000

    def pause(self, dice: Dice, done: int) -> float:
        """Seconds until the next request of a worker that has had ``done`` answered."""
        return 2 * self.think * dice.fraction() * (1 if done < self.eager else 100)

    def choose(self, dice: Dice, sectors: int, sector_size: int) -> tuple[Kind, int, int]:
        """Kind, first sector and sectors of the next request to a disk."""
        weights = (self.write, self.partial, self.read, self.zero, self.discard, self.flush)
        kinds = (Kind.WRITE, Kind.WRITE, Kind.READ, Kind.ZERO, Kind.DISCARD, Kind.FLUSH)
        point, which = dice.below(sum(weights)), 0
        while point >= weights[which]:
            point -= weights[which]
            which += 1
        if kinds[which] is Kind.FLUSH:
            return Kind.FLUSH, 0, 0
        return kinds[which], *self._place(dice, sectors, sector_size, whole=which != 1)

    def _place(self, dice: Dice, sectors: int, sector_size: int, *, whole: bool) -> tuple[int, int]:
        step = self.block // sector_size if whole else 1
        count = step * (1 + dice.below(self.largest if whole else 7))
        limit = max(1, int(sectors * self.hot_part)) if dice.fraction() < self.hot else sectors
        first = dice.below(max(1, limit // step)) * step
        return first, min(count, sectors - first)
