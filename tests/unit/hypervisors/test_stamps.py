"""Blocks that identify themselves, and the rule they are judged by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry_hypervisors.process.image import create_disk
from vmferry_hypervisors.process.judge import entry, judge
from vmferry_hypervisors.process.stamps import (
    DISK_MAGIC,
    FOREIGN,
    MEMORY_MAGIC,
    RECORD,
    ZERO,
    prefilled,
    read_stamps,
    stamp,
)
from vmferry_hypervisors.process.workload import Kind

UNITS = np.array([0, 7, 8, 123456789])
SEQUENCES = np.array([0, 1, 2**30 - 1, 5])


@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_what_is_stamped_is_read(size):
    data = stamp(DISK_MAGIC, UNITS, SEQUENCES, size)
    assert data.shape == (4, size // 8)
    assert read_stamps(DISK_MAGIC, UNITS, data).tolist() == SEQUENCES.tolist()


def test_no_two_records_of_a_disk_are_alike():
    data = stamp(DISK_MAGIC, np.arange(8), np.full(8, 3), 512).reshape(-1, RECORD // 8)
    assert len(np.unique(data, axis=0)) == len(data)


@given(st.integers(0, 4095), st.integers(1, 255))
def test_any_flipped_byte_is_seen(at, bits):
    data = stamp(DISK_MAGIC, UNITS, SEQUENCES, 4096)
    data.view(np.uint8)[1, at] ^= bits
    assert read_stamps(DISK_MAGIC, UNITS, data).tolist() == [0, FOREIGN, 2**30 - 1, 5]


def test_torn_unit_is_foreign():
    old, new = (stamp(DISK_MAGIC, UNITS, SEQUENCES + age, 4096) for age in (0, 1))
    new[:, 256:] = old[:, 256:]
    assert read_stamps(DISK_MAGIC, UNITS, new).tolist() == [FOREIGN] * 4


def test_misplaced_unit_is_foreign():
    data = stamp(DISK_MAGIC, UNITS, SEQUENCES, 512)
    assert read_stamps(DISK_MAGIC, UNITS + 1, data).tolist() == [FOREIGN] * 4
    assert read_stamps(MEMORY_MAGIC, UNITS, data).tolist() == [FOREIGN] * 4


def test_zeroes_are_told_apart():
    data = np.zeros((4, 64), dtype="<u8")
    data[2, 63] = 1
    assert read_stamps(DISK_MAGIC, UNITS, data).tolist() == [ZERO, ZERO, FOREIGN, ZERO]


@pytest.mark.parametrize(("fraction", "low", "high"), [(0, 0, 0), (0.25, 0.2, 0.3), (1, 1, 1)])
def test_prefill_has_its_share(fraction, low, high):
    share = prefilled(np.arange(4000) * 64, 4096, fraction).mean()
    assert low <= share <= high


def test_created_disk_is_judged_good_and_sparse(tmp_path):
    path = tmp_path / "disk"
    create_disk(path, 8 << 20, 4096, 0.4)
    units = np.arange((8 << 20) // 4096)
    found = read_stamps(DISK_MAGIC, units, np.fromfile(path, "<u8").reshape(-1, 512))
    assert set(found.tolist()) == {0, ZERO}
    entries = np.zeros(len(units), dtype=np.uint32)
    judgement = judge(units, entries, found, 4096, 0.4)
    assert not judgement.lost.any()
    assert not judgement.wrong.any()
    assert path.stat().st_blocks * 512 < 8 << 20


GOOD, LOST, WRONG = "good", "lost", "wrong"
RULES = [
    (entry(Kind.WRITE, 9), {9: GOOD, 8: LOST, 0: LOST, ZERO: LOST, 10: WRONG, FOREIGN: WRONG}),
    (entry(Kind.ZERO, 9), {ZERO: GOOD, 8: LOST, 9: LOST, 0: LOST, 10: WRONG, FOREIGN: WRONG}),
    (entry(Kind.TRIM, 9), {ZERO: GOOD, 8: GOOD, 0: GOOD, 10: WRONG, FOREIGN: WRONG}),
]


@pytest.mark.parametrize(
    ("record", "found", "verdict"),
    [(record, found, verdict) for record, rule in RULES for found, verdict in rule.items()],
)
@pytest.mark.parametrize("prefill", [0.0, 1.0])
def test_rule_for_written_units(record, found, verdict, prefill):
    assert rule(record, found, prefill) == verdict


@pytest.mark.parametrize(
    ("prefill", "found", "verdict"),
    [
        (0.0, ZERO, GOOD),
        (0.0, 0, WRONG),
        (0.0, 1, WRONG),
        (0.0, FOREIGN, WRONG),
        (1.0, 0, GOOD),
        (1.0, ZERO, LOST),
        (1.0, 1, WRONG),
        (1.0, FOREIGN, WRONG),
    ],
)
def test_rule_for_units_never_written(prefill, found, verdict):
    assert rule(0, found, prefill) == verdict


def rule(record, found, prefill):
    entries = np.array([record], dtype=np.uint32)
    lost, wrong = judge(np.array([5]), entries, np.array([found]), 4096, prefill)
    assert not (lost & wrong).any()
    return LOST if lost[0] else WRONG if wrong[0] else GOOD
