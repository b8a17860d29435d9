"""Whether what a unit holds is what it should: one rule for the guest's reads and for the checker.

=================  =========================================  =====================  ============
last acknowledged  good                                       lost                   wrong
=================  =========================================  =====================  ============
write              that sequence                              older, zero            all else
zeroes             zero                                       that old or older      all else
trim               zero, that old or older: left undefined    --                     all else
nothing            the original: sequence 0, or zero if hole  zero where sequence 0  all else
=================  =========================================  =====================  ============
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vmferry_hypervisors.process.layout import MAX_SEQUENCE, SEQUENCE_BITS
from vmferry_hypervisors.process.stamps import ZERO, prefilled
from vmferry_hypervisors.process.workload import Kind

__all__ = ["Judgement", "entry", "judge"]

Mask = npt.NDArray[np.bool_]


class Judgement(NamedTuple):
    """Masks over the units that were judged; a unit in neither is good."""

    lost: Mask
    wrong: Mask


def entry(kind: Kind, sequence: int) -> int:
    """The table's entry for a write that was acknowledged."""
    return kind << SEQUENCE_BITS | sequence


def judge(
    units: npt.NDArray[np.int64],
    entries: npt.NDArray[np.uint32],
    found: npt.NDArray[np.int64],
    size: int,
    prefill: float,
) -> Judgement:
    """Compare what was ``found`` in ``units`` of ``size`` bytes with the table's ``entries``."""
    sequence = (entries & MAX_SEQUENCE).astype(np.int64)
    kind = entries >> SEQUENCE_BITS
    never = entries == 0
    zero = found == ZERO
    old = (found >= 0) & (found <= sequence)
    filled = never & prefilled(units, size, prefill)
    written = (kind == Kind.WRITE) & ~never
    zeroed, trimmed = kind == Kind.ZERO, kind == Kind.TRIM
    good = (written | filled) & (found == sequence)
    good |= zero & (zeroed | trimmed | (never & ~filled))
    good |= trimmed & old
    lost = ~good & ((written & (old | zero)) | (zeroed & old) | (filled & zero))
    return Judgement(lost, ~good & ~lost)
