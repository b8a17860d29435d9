from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.errors import InputError
from vmferry.units import (
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("4k", 4096),
        ("4KiB", 4096),
        ("4 kb", 4000),
        ("1.5GiB", 3 << 29),
        ("1T", 1 << 40),
        ("10MB", 10_000_000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0001", "4QiB", "4 4", "1e9"])
def test_a_bad_size_is_named(text: str) -> None:
    with pytest.raises(InputError, match=repr(text)):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("0", 0), ("none", 0), ("100MiB/s", 100 << 20), ("1Gbit/s", 125_000_000), ("8bit", 1)],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("1.5 s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_bad_duration_is_named() -> None:
    with pytest.raises(InputError, match="fortnight"):
        parse_duration("1 fortnight")


@given(st.integers(0, 1 << 60))
def test_a_size_in_bytes_reads_back(size: int) -> None:
    assert parse_size(str(size)) == size


def test_what_people_see() -> None:
    assert format_size(512) == "512 B"
    assert format_size(3 << 29) == "1.5 GiB"
    assert format_rate(1 << 20) == "1.0 MiB/s"
    assert [format_duration(s) for s in (0.0032, 45.1, 125, 3725)] == [
        "3.2 ms",
        "45.1 s",
        "2:05",
        "1:02:05",
    ]
