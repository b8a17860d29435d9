"""Making a guest's disk: sparse, and partly filled with what the checker can recognise."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vmferry_hypervisors.process.stamps import DISK_MAGIC, PREFILL_CHUNK, prefilled, stamp

__all__ = ["create_disk"]


def create_disk(location: Path, size: int, unit: int, prefill: float) -> None:
    """Make a raw disk of ``size`` bytes whose share ``prefill`` is stamped with sequence 0.

    The rest are holes. Raises ``FileExistsError``.
    """
    with location.open("xb") as file:
        os.truncate(file.fileno(), size)
        chunks = np.arange(-(-size // PREFILL_CHUNK))
        for chunk in chunks[prefilled(chunks, PREFILL_CHUNK, prefill)].tolist():
            first = chunk * PREFILL_CHUNK // unit
            units = np.arange(first, min(first + PREFILL_CHUNK // unit, size // unit))
            contents = stamp(DISK_MAGIC, units, np.zeros_like(units), unit)
            os.pwrite(file.fileno(), contents.tobytes(), first * unit)
