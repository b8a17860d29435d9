"""Which blocks of a disk are dirty: marked, harvested, combined, walked and sent.

``DirtyMap`` is the one public class. ``outer_blocks`` and ``inner_blocks`` are the two ways to
round bytes to blocks that it is built on: outwards to mark, inwards to clear.
"""

from vmferry.dirtymap.geometry import inner_blocks, outer_blocks
from vmferry.dirtymap.map import DirtyMap

__all__ = ["DirtyMap", "inner_blocks", "outer_blocks"]
