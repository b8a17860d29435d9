"""What a guest has said on its serial line, wherever it ran: the recorder's file as it grows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from vmferry_hypervisors.qemu.workload.recorder import Happened, Said, read_frames

__all__ = ["Heard"]


class Heard(ABC):
    """The recorder's file; what is said there means something to a subclass.

    Attributes:
        longest_gap: longest time in seconds without a word.
        open: numbers of the connections there are at the end.
        switches: for each change of host, seconds between the last word there and the first here.

    """

    def __init__(self, path: Path) -> None:
        self.longest_gap = 0.0
        self.switches: list[float] = []
        self.open: set[int] = set()
        self._path, self._offset = path, 0
        self._time: float | None = None
        self._connection = -1

    @abstractmethod
    def _hear(self, said: Said) -> None:
        """Take what was said next."""

    def update(self) -> None:
        """Read what was added."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        start = self._offset
        for said, end in read_frames(data):
            self._take_frame(said)
            self._offset = start + end

    def _take_frame(self, said: Said) -> None:
        if said.happened is Happened.OPENED:
            self.open.add(said.connection)
        elif said.happened is Happened.CLOSED:
            self.open.discard(said.connection)
        else:
            self._note_time(said.time, said.connection)
            self._hear(said)

    def _note_time(self, time: float, connection: int) -> None:
        if self._time is not None:
            self.longest_gap = max(self.longest_gap, time - self._time)
            if connection > self._connection:
                self.switches.append(time - self._time)
        self._time, self._connection = time, connection
