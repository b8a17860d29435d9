from __future__ import annotations

import pytest

from vmferry.errors import TrackerError
from vmferry.units import GIB, MIB, TIB
from vmferry_support.dm import Segment
from vmferry_trackers.devices import DeviceError
from vmferry_trackers.dm_era.discards import granularity, is_aligned, limit_discards
from vmferry_trackers.dm_era.metadata import fitting_block_size, metadata_bytes
from vmferry_trackers.dm_era.needs import mended
from vmferry_trackers.dm_era.stack import EraStatus, parse_status, refuse_table
from vmferry_trackers.dm_era.tools import parse_blocks, parse_help
from vmferry_trackers.dm_era.tracker import _map_of

OLD_HELP = "Options:\n  {-h|--help}\n  {-o <xml file>}\n  {--metadata-snapshot}\n"
NEW_HELP = "Options:\n      --metadata-snapshot <METADATA_SNAPSHOT>  Use the snapshot\n"
XML = """<blocks>
  <range begin="7" end = "10"/>
  <block block="100"/>
</blocks>
"""


def test_tools_are_asked_how_they_take_the_option():
    assert parse_help(OLD_HELP).snapshot == ("--metadata-snapshot",)
    assert parse_help("  --metadata-snapshot    Use it\n").snapshot == ("--metadata-snapshot",)
    assert parse_help(NEW_HELP).snapshot == ("--metadata-snapshot=1",)
    with pytest.raises(TrackerError, match=r"0\.9"):
        parse_help("Usage: era_invalidate")


def test_list_of_blocks_becomes_a_map():
    made = _map_of(parse_blocks(XML), 101 * 4096 - 512, 4096)
    assert list(made.runs()) == [(7 * 4096, 3 * 4096), (100 * 4096, 4096 - 512)]
    assert not _map_of(parse_blocks("<blocks>\n</blocks>"), 4096, 4096)


@pytest.mark.parametrize(
    "text", ["", XML[:40], XML.replace("range", "rang"), "<blocks></blocks><x/>"]
)
def test_list_that_is_cut_short_or_strange_is_an_error(text):
    with pytest.raises(TrackerError, match="printed no list"):
        parse_blocks(text)


def test_block_beyond_the_disk_is_an_error():
    with pytest.raises(TrackerError, match="beyond the disk"):
        _map_of(parse_blocks(XML), 100 * 4096, 4096)


def test_status():
    assert parse_status("8 37/1024 5 -") == EraStatus(37, 1024, 5, held=False)
    assert parse_status("8 37/1024 5 12").held
    for failed in ("Error", "Fail", "8 37 5 -"):
        with pytest.raises(TrackerError, match="metadata failed"):
            parse_status(failed)


def test_metadata_grows_with_blocks_and_blocks_with_disks():
    assert metadata_bytes(MIB, 4096) == 5 * MIB
    assert metadata_bytes(TIB, 65536) == 196 * MIB
    assert fitting_block_size(GIB, 512, 256 * MIB) == 4096
    assert fitting_block_size(TIB, 4096, 256 * MIB) == 65536


def test_targets_that_keep_state_are_refused():
    refuse_table("vg-lv", (Segment(0, 8, "linear", "7:0 0"),))
    for table in ((), (Segment(0, 8, "thin", "253:1 1"),)):
        with pytest.raises(DeviceError, match="put a linear device above it"):
            refuse_table("vg-lv", table)


@pytest.mark.parametrize(
    ("release", "good"), [("6.1.0-56-amd64", True), ("5.10.0", False), ("4.19", False), ("x", True)]
)
def test_old_kernels_are_known(release, good):
    assert mended(release) is good


@pytest.fixture
def sysfs(tmp_path):
    folder = tmp_path / "dev" / "block" / "7:0"
    (folder / "queue").mkdir(parents=True)
    (folder / "discard_alignment").write_text("0\n")
    (folder / "queue" / "discard_granularity").write_text("4096\n")
    (folder / "queue" / "discard_max_bytes").write_text("1073741824\n")
    return tmp_path


async def test_pieces_must_begin_at_granules(sysfs):
    good, bad = Segment(0, 8, "linear", "7:0 16"), Segment(8, 8, "linear", "7:0 17")
    assert await is_aligned([good], 4096, sysfs)
    assert not await is_aligned([good, bad], 4096, sysfs)
    assert not await is_aligned([Segment(0, 8, "striped", "1 8 7:0 0")], 4096, sysfs)
    (sysfs / "dev" / "block" / "7:0" / "discard_alignment").write_text("512\n")
    assert not await is_aligned([good], 4096, sysfs)


def test_limit_of_discards_is_written(sysfs):
    assert granularity("7:0", sysfs) == 4096
    limit_discards("7:0", 0, sysfs)
    assert granularity("7:0", sysfs) == 0
