"""The guest's oracle: compiled for this machine and called from here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from vmferry_lab.guestimage import GUEST

DISCARDED = 0x80000000
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]


@pytest.fixture(scope="module")
def sectors(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("sectors") / "sectors.so"
    source = GUEST / "sectors.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.sector_fill.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint32]
    loaded.sector_matches.argtypes = loaded.sector_fill.argtypes
    loaded.sector_matches.restype = ctypes.c_bool
    return loaded


def _filled(sectors: ctypes.CDLL, disk: int, sector: int, sequence: int) -> bytes:
    buffer = ctypes.create_string_buffer(512)
    sectors.sector_fill(buffer, disk, sector, sequence)
    return buffer.raw


def test_what_was_written_matches(sectors: ctypes.CDLL) -> None:
    assert sectors.sector_matches(_filled(sectors, 1, 2, 3), 1, 2, 3)


@pytest.mark.parametrize("other", [(0, 2, 3), (1, 3, 3), (1, 2, 2)])
def test_another_disk_place_or_write_does_not(
    sectors: ctypes.CDLL, other: tuple[int, int, int]
) -> None:
    assert not sectors.sector_matches(_filled(sectors, *other), 1, 2, 3)


@pytest.mark.parametrize("at", [0, 8, 17, 31, 32, 300, 511])
def test_a_single_wrong_bit_is_seen(sectors: ctypes.CDLL, at: int) -> None:
    data = bytearray(_filled(sectors, 1, 2, 3))
    data[at] ^= 0x10
    assert not sectors.sector_matches(bytes(data), 1, 2, 3)


def test_zeroes_are_good_after_a_discard_only(sectors: ctypes.CDLL) -> None:
    assert sectors.sector_matches(bytes(512), 1, 2, 3 | DISCARDED)
    assert not sectors.sector_matches(bytes(512), 1, 2, 3)
    assert sectors.sector_matches(_filled(sectors, 1, 2, 3), 1, 2, 3 | DISCARDED)
    assert not sectors.sector_matches(_filled(sectors, 1, 2, 2), 1, 2, 3 | DISCARDED)


def test_a_sector_never_written_may_hold_anything(sectors: ctypes.CDLL) -> None:
    assert sectors.sector_matches(b"x" * 512, 1, 2, 0)


def test_the_writer_compiles_without_a_warning(tmp_path: Path) -> None:
    sources = sorted(str(path) for path in GUEST.glob("*.c"))
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(tmp_path / "writer"), *sources], check=True)
