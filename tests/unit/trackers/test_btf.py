from __future__ import annotations

import pytest
from btf_maker import small_kernel

from vmferry_trackers.ebpf.btf import KERNEL_TYPES, Btf, BtfError


@pytest.fixture(scope="module")
def btf():
    return Btf(small_kernel())


@pytest.mark.parametrize(
    ("name", "path", "offsets"),
    [
        ("request", "cmd_flags", (20,)),
        ("request", "q->disk->major", (8, 40, 4)),
        ("bio", "bi_iter.bi_size", (32,)),
        ("bio", "bi_opf", (16,)),
        ("bio", "bi_bdev->bd_disk->first_minor", (8, 24, 12)),
    ],
)
def test_walks_to_a_field(btf, name, path, offsets):
    assert btf.walk(name, path) == offsets


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [("nothing", "x", "struct nothing"), ("bio", "bi_disk->major", "bio: bi_disk->major")],
)
def test_what_the_kernel_lacks_is_named(btf, name, path, said):
    with pytest.raises(BtfError, match=said):
        btf.walk(name, path)


def test_tracepoint_says_what_its_parameters_are(btf):
    assert btf.tracepoint("block_rq_complete").parameters == ("request", "", "")
    assert btf.tracepoint("block_bio_complete").parameters == ("request_queue", "bio")
    assert btf.tracepoint("block_bio_queue").type_id != btf.tracepoint("block_rq_complete").type_id


def test_tracepoint_that_is_missing_is_named(btf):
    with pytest.raises(BtfError, match="tracepoint block_rq_merge"):
        btf.tracepoint("block_rq_merge")


def test_damaged_information_is_an_error():
    good = small_kernel()
    for damage in (b"", b"\x7fELF" + good[4:], good[:20], good[:24] + bytes(64)):
        with pytest.raises(BtfError):
            Btf(damage)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(BtfError, match="cannot be read"):
        Btf.of_kernel(tmp_path / "vmlinux")


@pytest.mark.skipif(not KERNEL_TYPES.exists(), reason="this kernel has no type information")
def test_reads_the_running_kernel():
    btf = Btf.of_kernel()
    assert btf.tracepoint("block_bio_queue").parameters[-1] == "bio"
    assert len(btf.walk("bio", "bi_iter.bi_sector")) == 1
