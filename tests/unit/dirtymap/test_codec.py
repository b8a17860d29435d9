import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.dirtymap import DirtyMap
from vmferry.errors import ProtocolError
from vmferry.units import GIB, MIB, TIB

CHUNK = 2**18
SIZE, BLOCK = 3 * CHUNK * 512 + 100, 512
BLOCKS = 3 * CHUNK + 1
HEADER = struct.Struct("<4sBBBBIQQ")


def decode(data, size=SIZE, block_size=BLOCK, **options):
    return DirtyMap.decode(data, size=size, block_size=block_size, **options)


def forge(
    body=b"", *, magic=b"VFdm", version=1, kind=0, widths=(1, 1), geometry=(BLOCK, SIZE), count=0
):
    return HEADER.pack(magic, version, kind, *widths, *geometry, count) + body


def runs(gaps, lengths, width=4, **fields):
    """The wire form of these gaps and lengths, right or wrong."""
    planes = b"".join(
        np.array(values, "<u8").view(np.uint8).reshape(-1, 8)[:, :width].T.tobytes()
        for values in (gaps, lengths)
    )
    fields = {"widths": (width, width), "count": len(gaps)} | fields
    return forge(zstandard.compress(planes), **fields)


def bitmaps(live, full, *chunks, **fields):
    body = bytes([live, full]) + b"".join(chunk.ljust(2**15, b"\0") for chunk in chunks)
    return forge(zstandard.compress(body), kind=1, widths=(0, 0), **{"count": len(chunks)} | fields)


def random_map(density, seed=1):
    rng = np.random.default_rng(seed)
    blocks = np.flatnonzero(rng.random(BLOCKS) < density)
    return DirtyMap.from_runs(SIZE, BLOCK, [(block * BLOCK, 1) for block in blocks.tolist()])


@pytest.mark.parametrize("density", [0, 1e-5, 0.001, 0.02, 0.1, 0.5, 0.99, 1])
@pytest.mark.parametrize("wrap", [bytes, memoryview, bytearray])
def test_random_maps_come_back(density, wrap):
    dirty = random_map(density)
    assert decode(wrap(dirty.encode())) == dirty


def test_a_dense_map_with_full_and_clear_chunks_comes_back():
    dirty = random_map(0.5)
    dirty.mark(0, CHUNK * BLOCK)
    dirty.clear(CHUNK * BLOCK, CHUNK * BLOCK)
    wire = dirty.encode()
    assert wire[5] == 1
    assert decode(wire) == dirty


@pytest.mark.parametrize("size", [1, 64 * TIB, 2**53])
def test_full_and_empty_maps_are_tiny(size):
    for dirty in (DirtyMap.full(size, 4096), DirtyMap(size, 4096)):
        wire = dirty.encode()
        assert len(wire) < 64
        assert decode(wire, size, 4096) == dirty


def test_a_map_is_about_as_large_as_what_it_says():
    rng = np.random.default_rng(2)
    dirty = DirtyMap(64 * GIB, 4096)
    dirty.mark_runs(rng.integers(0, 2**24, 50_000) * 4096, np.full(50_000, 4096))
    assert len(dirty.encode()) < 2 * dirty.count()


def test_forged_maps_of_this_kind_are_otherwise_good():
    """What the refusals below are made from is accepted when nothing is wrong with it."""
    assert list(decode(runs([0, 5], [2, 1])).runs()) == [(0, 1024), (7 * 512, 512)]
    assert list(decode(bitmaps(0b1001, 0b1000, b"\2")).runs()) == [(512, 512), (SIZE - 100, 100)]
    assert list(decode(runs([BLOCKS - 1], [1])).runs()) == [(SIZE - 100, 100)]
    assert decode(bitmaps(0b1000, 0, b"\1")) == decode(runs([BLOCKS - 1], [1]))
    assert not decode(forge())


REFUSED = {
    "empty": (b"", "header"),
    "half a header": (forge()[:27], "header"),
    "magic": (forge(magic=b"VFdn"), "magic"),
    "version": (forge(version=2), "version"),
    "kind": (forge(kind=2), "kind"),
    "block size": (forge(geometry=(1024, SIZE)), "block_size"),
    "size": (forge(geometry=(BLOCK, SIZE + 1)), "size"),
    "widths of 0": (forge(widths=(0, 1)), "width"),
    "widths of 7": (runs([0], [1], width=7), "width"),
    "more runs than fit": (runs([0], [1], count=BLOCKS), "count"),
    "2**64 runs": (runs([0], [1], count=2**64 - 1), "count"),
    "more runs than sent": (runs([0], [1], count=2), "body"),
    "fewer runs than sent": (runs([0, 1], [1, 1], count=1), "body"),
    "a body without runs": (forge(b"x"), "body"),
    "no body with runs": (forge(count=1), "body"),
    "not zstd": (forge(b"garbage, surely", count=1), "body"),
    "cut short": (runs(range(99), range(1, 100))[:-1], "body"),
    "trailing byte": (runs([0], [1]) + b"\0", "body"),
    "trailing frame": (runs([0], [1]) + zstandard.compress(b""), "body"),
    "empty run": (runs([0, 1], [0, 1]), "body"),
    "empty gap": (runs([0, 0], [1, 1]), "body"),
    "a run past the end": (runs([BLOCKS - 1], [2]), "body"),
    "a run beyond the end": (runs([BLOCKS], [1]), "body"),
    "sums that overflow": (runs([2**48 - 1] * 2**17, [2**48 - 1] * 2**17, width=6), "body"),
    "bitmap count": (bitmaps(0b0001, 0, b"\2", count=2), "body"),
    "bitmaps beyond the chunks": (bitmaps(0b0001, 0, b"\2", count=5), "count"),
    "2**64 bitmaps": (bitmaps(0b0001, 0, b"\2", count=2**64 - 1), "count"),
    "fewer bitmaps than live": (bitmaps(0b0011, 0, b"\2"), "body"),
    "full but not live": (bitmaps(0b0001, 0b0010, b"\2"), "body"),
    "live beyond the disk": (bitmaps(0b10000, 0, b"\2"), "body"),
    "full beyond the disk": (bitmaps(0b10001, 0b10000, b"\2"), "body"),
    "a bitmap without bits": (bitmaps(0b0001, 0, b"\0"), "body"),
    "a bit beyond the disk": (bitmaps(0b1000, 0, b"\3"), "body"),
    "a last bit beyond the disk": (
        bitmaps(0b1000, 0, b"\1".ljust(2**15 - 1, b"\0") + b"\x80"),
        "body",
    ),
}


@pytest.mark.parametrize(("data", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_map_is_refused_by_field(data, field):
    with pytest.raises(ProtocolError, match=f"dirty map: field '{field}': "):
        decode(data)


def test_a_frame_that_does_not_state_its_size_is_refused():
    body = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0\1")
    with pytest.raises(ProtocolError, match="field 'body'"):
        decode(forge(body, count=1))


def stated(body, size):
    """A frame whose header says ``size`` bytes, in 4 bytes, though it holds ``body``."""
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", size) + zstandard.compress(body)[6:]


def test_a_frame_that_holds_less_than_it_states_is_refused():
    count = BLOCKS // 2
    with pytest.raises(ProtocolError, match="field 'body'"):
        decode(forge(stated(b"\0\1", 2 * count), count=count))


def refused_within(data, limit, **options):
    """Memory at its peak while ``data`` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=r"over the limit|too many"):
            decode(data, **options)
        return tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_small_data_that_would_grow_large_is_refused_before_it_does():
    huge = {"size": 64 * TIB, "block_size": 512}
    geometry = (512, 64 * TIB)
    sparse = runs([0] + [CHUNK] * 40_000, [1] * 40_001, geometry=geometry)
    assert len(sparse) < 100_000
    assert refused_within(sparse, 8 * MIB, **huge)
    bomb = forge(zstandard.compress(b""), kind=1, geometry=geometry, count=2**19)
    assert refused_within(bomb, MIB, **huge)
    many = forge(zstandard.compress(b""), geometry=geometry, count=2**30)
    assert refused_within(many, MIB, **huge)


def test_the_limit_is_the_callers():
    wire = random_map(0.01).encode()
    assert decode(wire, max_bytes=MIB)
    for limit in (len(wire) - 1, len(wire), 2**16):
        with pytest.raises(ProtocolError, match=r"limit|too many"):
            decode(wire, max_bytes=limit)


def test_runs_are_refused_by_what_decoding_them_takes():
    wire = runs([1] * 30_000, [1] * 30_000)
    assert decode(wire).count() == 30_000
    with pytest.raises(ProtocolError, match="field 'count': 30000 runs are too many"):
        decode(wire, max_bytes=500_000)


def test_data_longer_than_the_limit_is_not_looked_at():
    with pytest.raises(ProtocolError, match="field 'length': 128 bytes are over the limit of 127"):
        decode(forge(bytes(100)), max_bytes=127)


def test_more_runs_than_a_decoder_would_take_are_sent_as_bitmaps(monkeypatch):
    dirty = random_map(0.001)
    assert dirty.encode()[5] == 0
    monkeypatch.setattr("vmferry.dirtymap.codec._MAX_RUNS", 100)
    wire = dirty.encode()
    assert wire[5] == 1
    assert decode(wire) == dirty


def decodes_or_refuses(data):
    """Hostile bytes end in a map whose every run is on the disk, or in ``ProtocolError``."""
    try:
        dirty = decode(data, max_bytes=4 * MIB)
    except ProtocolError:
        return
    starts, counts = dirty.run_arrays()
    assert dirty.count() == counts.sum() <= BLOCKS
    assert (starts + counts).max(initial=0) <= BLOCKS
    assert decode(dirty.encode()) == dirty


@given(st.binary(max_size=200))
def test_arbitrary_bytes_do_no_harm(data):
    decodes_or_refuses(data)
    decodes_or_refuses(forge(data, count=len(data)))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0.0001, 0.3]), st.data())
def test_flipped_bytes_do_no_harm(density, data):
    wire = bytearray(WIRES[density])
    for _ in range(data.draw(st.integers(1, 4))):
        near = st.integers(0, min(60, len(wire) - 1)) | st.integers(0, len(wire) - 1)
        wire[data.draw(near)] = data.draw(st.integers(0, 255))
    decodes_or_refuses(bytes(wire[: data.draw(st.just(len(wire)) | st.integers(0, len(wire)))]))


WIRES = {density: random_map(density).encode() for density in (0.0001, 0.3)}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 2**20)), min_size=1, max_size=50),
    st.integers(1, 6),
)
def test_arbitrary_numbers_in_a_good_frame_do_no_harm(pairs, width):
    gaps, lengths = zip(*pairs, strict=True)
    decodes_or_refuses(runs(gaps, lengths, width))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), st.lists(st.binary(max_size=40), max_size=4))
def test_arbitrary_bitmaps_in_a_good_frame_do_no_harm(live, full, chunks):
    decodes_or_refuses(bitmaps(live, full, *chunks))
