"""Under a limit a piece of a disk is small, so that the switch need not wait long for it."""

from __future__ import annotations

import pytest

from vmferry.engine.push import piece_size
from vmferry.units import KIB, MIB


@pytest.mark.parametrize(
    ("limit", "block_size", "piece"),
    [
        (0, 4 * KIB, 4 * MIB),
        (1000 * MIB, 4 * KIB, 4 * MIB),
        (40 * MIB, 4 * KIB, 4 * MIB),
        (39 * MIB, 4 * KIB, 2 * MIB),
        (MIB, 4 * KIB, 64 * KIB),
        (MIB, MIB, MIB),
        (1, 4 * KIB, 64 * KIB),
    ],
)
def test_ten_pieces_a_second(limit: int, block_size: int, piece: int) -> None:
    assert piece_size(limit, 4 * MIB, block_size) == piece
