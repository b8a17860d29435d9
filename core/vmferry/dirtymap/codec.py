"""The wire form of a dirty map.

A header of 28 bytes, little-endian, then a body in one zstd frame:

====== ====== ===========================================================================
offset bytes  field
====== ====== ===========================================================================
0      4      magic ``VFdm``
4      1      version, 1
5      1      kind: 0 runs, 1 bitmaps
6      1      runs: bytes per gap; bitmaps: 0
7      1      runs: bytes per length; bitmaps: 0
8      4      block size, bytes
12     8      disk size, bytes
20     8      count: of runs, or of bitmaps
====== ====== ===========================================================================

*Runs*: for each run the clean blocks before it (the gap; only the first may be 0), then for each
its dirty blocks (the length, at least 1). Each of the two is stored in byte planes: the lowest
bytes of all gaps, then the next, and so on; the high planes are almost all zero and compress to
nothing. No run, no body.

*Bitmaps*, for maps so fragmented that runs would be larger: two summaries, one bit per chunk of
2**18 blocks, of the chunks with anything dirty and of those wholly dirty, then 32 KiB for each
chunk in the first and not in the second. Bits are in little-endian order.

A decoder knows the size of the body before it allocates anything, checks it against the frame's
own header, and checks every number against the disk. Nothing but zstd and numpy touches what the
peer sent.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import zstandard
from bitarray import bitarray

from vmferry.dirtymap.bits import CHUNK_BYTES, CHUNK_SHIFT, Blocks, Octets
from vmferry.dirtymap.bulk import set_edges
from vmferry.dirtymap.geometry import block_count
from vmferry.dirtymap.runs import Segment, run_segments
from vmferry.dirtymap.table import BlockTable
from vmferry.errors import ProtocolError

__all__ = ["decode_table", "encode_table"]

_HEADER = struct.Struct("<4sBBBBIQQ")
_MAGIC = b"VFdm"
_VERSION = 1
_RUNS, _BITMAPS = 0, 1
_MAX_WIDTH = 6
_RUN_MEMORY = 32
"""Bytes a run takes while it is decoded: its edges, and as much again for checking them."""
_MAX_RUNS = 2**22
"""So many runs are encoded as such: decoding them takes 128 MiB. Beyond, it is bitmaps."""
_BITMAP_BYTES_PER_RUN = 8
"""Runs are the better form while each stands for at least so many bytes of bitmap."""


@dataclass(frozen=True, slots=True)
class _Header:
    kind: int
    gap_width: int
    length_width: int
    block_size: int
    size: int
    count: int

    def pack(self) -> bytes:
        widths = self.gap_width, self.length_width
        return _HEADER.pack(
            _MAGIC, _VERSION, self.kind, *widths, self.block_size, self.size, self.count
        )


def encode_table(table: BlockTable, size: int, block_size: int) -> bytes:
    """The wire form of ``table``, of a disk of ``size`` bytes in blocks of ``block_size``."""
    runs = _runs_if_few(table)
    if runs is None:
        count = len(table.bitmaps)
        header = _Header(_BITMAPS, 0, 0, block_size, size, count)
        return header.pack() + _compress(_bitmap_body(table))
    starts, stops = runs
    gaps = starts - np.append(np.zeros(1, np.int64), stops)[:-1]
    gap_width, gap_planes = _to_planes(gaps)
    length_width, length_planes = _to_planes(stops - starts)
    header = _Header(_RUNS, gap_width, length_width, block_size, size, starts.size)
    return header.pack() + (_compress(gap_planes + length_planes) if starts.size else b"")


def _runs_if_few(table: BlockTable) -> Segment | None:
    worth = 1 + len(table.full) + len(table.bitmaps) * CHUNK_BYTES // _BITMAP_BYTES_PER_RUN
    most = min(worth, _MAX_RUNS)
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for starts, stops in run_segments(table, 0, table.blocks):
        parts.append((starts, stops))
        most -= starts.size
        if most < 0:
            return None
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _to_planes(values: Blocks) -> tuple[int, bytes]:
    width = max(1, -(-int(values.max(initial=0)).bit_length() // 8))
    columns = values.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    return width, columns.T.tobytes()


def _from_planes(planes: Octets, count: int, width: int) -> Blocks:
    columns = np.zeros((count, 8), np.uint8)
    columns[:, :width] = planes.reshape(width, count).T
    return columns.view("<i8").reshape(-1).astype(np.int64, copy=False)


def _bitmap_body(table: BlockTable) -> bytes:
    bitmaps = [table.bitmaps[k] for k in sorted(table.bitmaps)]
    return b"".join([table.live.tobytes(), table.full.tobytes(), *bitmaps])


def _compress(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(body)


def decode_table(
    data: bytes | memoryview, *, size: int, block_size: int, max_bytes: int
) -> BlockTable:
    """The table that ``data``, from a peer, is the wire form of.

    Args:
        data: exactly what ``encode_table`` returned, elsewhere; not trusted.
        size: bytes of the disk the map must be for.
        block_size: bytes of the blocks it must be in.
        max_bytes: most memory to spend on it, compressed, expanded or as bitmaps each.

    Raises:
        ProtocolError: names the field that is wrong.

    """
    view = memoryview(data).cast("B")
    if view.nbytes > max_bytes:
        _refuse("length", f"{view.nbytes} bytes are over the limit of {max_bytes}")
    header = _parse_header(view, size, block_size)
    table = BlockTable(block_count(size, block_size))
    body = view[_HEADER.size :]
    if header.kind == _RUNS:
        _decode_runs(table, header, body, max_bytes)
    else:
        _decode_bitmaps(table, header.count, body, max_bytes)
    return table


def _refuse(field: str, why: str) -> NoReturn:
    raise ProtocolError(f"dirty map: field {field!r}: {why}")


def _parse_header(view: memoryview, size: int, block_size: int) -> _Header:
    if view.nbytes < _HEADER.size:
        _refuse("header", f"{view.nbytes} bytes where {_HEADER.size} are needed")
    magic, version, *fields = _HEADER.unpack_from(view)
    header = _Header(*fields)
    if magic != _MAGIC:
        _refuse("magic", f"{magic!r} is not {_MAGIC!r}")
    if version != _VERSION:
        _refuse("version", f"{version} is not {_VERSION}")
    if header.kind not in {_RUNS, _BITMAPS}:
        _refuse("kind", f"{header.kind} is neither {_RUNS} nor {_BITMAPS}")
    if header.block_size != block_size:
        _refuse("block_size", f"{header.block_size} bytes where {block_size} are expected")
    if header.size != size:
        _refuse("size", f"{header.size} bytes where {size} are expected")
    return header


def _expand(body: memoryview, length: int, max_bytes: int) -> Octets:
    """The frame's content, which must be ``length`` bytes; nothing is allocated before it is."""
    if length > max_bytes:
        _refuse("count", f"{length} bytes of body are over the limit of {max_bytes}")
    try:
        stated = zstandard.get_frame_parameters(body).content_size
        if stated != length:
            _refuse("body", f"states {stated} bytes where {length} are needed")
        content = zstandard.ZstdDecompressor().decompress(
            body, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        _refuse("body", f"is not one whole zstd frame: {error}")
    if len(content) != length:
        _refuse("body", f"holds {len(content)} bytes where {length} are needed")
    return np.frombuffer(content, np.uint8)


def _decode_runs(table: BlockTable, header: _Header, body: memoryview, max_bytes: int) -> None:
    count, widths = header.count, (header.gap_width, header.length_width)
    if not all(1 <= width <= _MAX_WIDTH for width in widths):
        _refuse("width", f"{widths} are not from 1 to {_MAX_WIDTH}")
    if count > (table.blocks + 1) // 2 or count * _RUN_MEMORY > max_bytes:
        _refuse("count", f"{count} runs are too many")
    if not count:
        if body.nbytes:
            _refuse("body", f"{body.nbytes} bytes after a map without runs")
        return
    planes = _expand(body, count * sum(widths), max_bytes)
    edges = _checked_edges(planes, count, widths, table.blocks)
    touched = np.count_nonzero(np.diff(edges >> CHUNK_SHIFT)) + 1
    if touched * CHUNK_BYTES > max_bytes:
        _refuse("count", f"bitmaps for {touched} chunks are over the limit of {max_bytes} bytes")
    set_edges(table, edges)


def _checked_edges(planes: Octets, count: int, widths: tuple[int, int], blocks: int) -> Blocks:
    """Edges of the runs: strictly ascending (but for a first of 0) and none beyond ``blocks``.

    A step is below 2**48 and so is ``blocks``: the first edge past the end is still far from
    overflowing, and it is enough to refuse them all.
    """
    steps = np.empty(2 * count, np.int64)
    steps[0::2] = _from_planes(planes[: count * widths[0]], count, widths[0])
    steps[1::2] = _from_planes(planes[count * widths[0] :], count, widths[1])
    if not steps[1:].all():
        _refuse("body", "a run or the gap between two runs is empty")
    edges = np.cumsum(steps)
    if edges.max() > blocks:
        _refuse("body", f"a run ends beyond the disk's {blocks} blocks")
    return edges


def _decode_bitmaps(table: BlockTable, count: int, body: memoryview, max_bytes: int) -> None:
    chunks = len(table.live)
    if count > chunks:
        _refuse("count", f"{count} bitmaps for {chunks} chunks")
    summary = -(-chunks // 8)
    content = _expand(body, 2 * summary + count * CHUNK_BYTES, max_bytes)
    live = _summary(content[:summary], chunks)
    full = _summary(content[summary : 2 * summary], chunks)
    if (full & ~live).any() or (live & ~full).count() != count:
        _refuse("body", "the summaries contradict each other or the count")
    bitmaps = content[2 * summary :].reshape(count, CHUNK_BYTES)
    if not bitmaps.any(axis=1).all():
        _refuse("body", "a bitmap is empty")
    for row, k in enumerate((live & ~full).search(1)):
        bitmap = bitarray(bitmaps[row].tobytes(), endian="little")
        if bitmap.find(1, table.width(k)) >= 0:
            _refuse("body", f"a bit is set beyond the disk's {table.blocks} blocks")
        table.put(k, bitmap)
    table.live, table.full = live, full


def _summary(octets: Octets, chunks: int) -> bitarray:
    summary = bitarray(octets.tobytes(), endian="little")
    if summary.find(1, chunks) >= 0:
        _refuse("body", f"a summary bit is set beyond the disk's {chunks} chunks")
    return summary[:chunks]
