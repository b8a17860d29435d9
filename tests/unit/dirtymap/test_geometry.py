import pytest

from vmferry.dirtymap import DirtyMap, inner_blocks, outer_blocks
from vmferry.errors import InputError


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 0, (0, 0)),
        (700, 0, (1, 1)),
        (0, 1, (0, 1)),
        (511, 1, (0, 1)),
        (511, 2, (0, 2)),
        (512, 512, (1, 2)),
        (100, 1500, (0, 4)),
    ],
)
def test_outer_blocks_are_all_that_are_touched(offset, length, expected):
    assert outer_blocks(offset, length, 512) == expected


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 511, (0, 0)),
        (0, 512, (0, 1)),
        (1, 1023, (1, 2)),
        (1, 1022, (1, 1)),
        (10, 20, (1, 1)),
        (1024, 175, (2, 2)),
        (1024, 176, (2, 3)),
        (1025, 175, (3, 3)),
    ],
)
def test_inner_blocks_are_those_wholly_inside(offset, length, expected):
    assert inner_blocks(offset, length, 512, size=1200) == expected


@pytest.mark.parametrize("block_size", [4096.0, 0, -512, 1, 256, 513, 1000, 2**25, 3 * 2**20])
def test_an_impossible_block_size_is_named(block_size):
    with pytest.raises(InputError, match=f"block size {block_size} "):
        DirtyMap(2**20, block_size)


@pytest.mark.parametrize("size", [1024.5, 0, -1, 2**53 + 1])
def test_an_impossible_disk_size_is_named(size):
    with pytest.raises(InputError, match=f"disk size {size} "):
        DirtyMap(size, 4096)


@pytest.mark.parametrize("block_size", [512, 4096, 2**20, 2**24])
@pytest.mark.parametrize("size", [1, 511, 2**30 + 1, 2**46, 2**53])
def test_possible_geometries_are_taken(size, block_size):
    dirty = DirtyMap(size, block_size)
    assert (dirty.size, dirty.block_size) == (size, block_size)
    assert dirty.blocks == -(-size // block_size)
    assert not dirty
    dirty.mark(size - 1, 1)
    assert list(dirty.runs()) == [
        ((size - 1) // block_size * block_size, (size - 1) % block_size + 1)
    ]
