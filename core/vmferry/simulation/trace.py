"""What happened in a simulation, in order, with its virtual time."""

from __future__ import annotations

import asyncio
import hashlib

__all__ = ["Trace"]


class Trace:
    """Events in order. Two runs of one seed have the same trace, byte for byte.

    Attributes:
        events: ``(time, kind, facts)`` each; facts are numbers and strings.

    """

    def __init__(self) -> None:
        self.events: list[tuple[float, str, tuple[object, ...]]] = []

    def add(self, kind: str, *facts: object) -> None:
        """Note an event of that ``kind`` at this moment."""
        self.events.append((asyncio.get_running_loop().time(), kind, facts))

    def lines(self, *kinds: str, last: int | None = None) -> list[str]:
        """The events of these kinds, or all, as text; only the ``last`` so many if given."""
        chosen = [event for event in self.events if not kinds or event[1] in kinds]
        chosen = chosen[-last:] if last else chosen
        return [f"{when:12.6f} {kind} {' '.join(map(str, facts))}" for when, kind, facts in chosen]

    def digest(self) -> str:
        """A short name of this course of events."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()[:16]
