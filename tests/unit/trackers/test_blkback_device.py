from __future__ import annotations

import os

import pytest

from vmferry.api.guest import Disk
from vmferry_trackers.blkback.device import Kind, find_device
from vmferry_trackers.devices import DeviceError


@pytest.fixture
def sysfs(tmp_path):
    """A loop device with a partition, a logical volume, and a software RAID."""
    blocks = tmp_path / "devices" / "virtual" / "block"
    links = tmp_path / "dev" / "block"
    links.mkdir(parents=True)

    def device(path, number, size, **files):
        folder = blocks / path
        folder.mkdir(parents=True)
        for name, text in {"dev": number, "size": size, "inflight": "0 0", **files}.items():
            (folder / name).write_text(f"{text}\n")
        (links / number).symlink_to(folder)
        return folder

    loop = device("loop3", "7:3", 1000)
    (loop / "mq").mkdir()
    (loop / "queue").mkdir()
    (loop / "queue" / "iostats").write_text("1\n")
    (loop / "queue" / "zoned").write_text("none\n")
    device("loop3/loop3p1", "259:0", 600, partition=1, start=100, inflight="2 3")
    (device("dm-0", "253:0", 800) / "dm").mkdir()
    device("md0", "9:0", 800)
    return tmp_path


def disk(number, sectors):
    return Disk(name="xvda", size=512 * sectors, facts={"devno": number})


def test_whole_device(sysfs):
    found = find_device(disk("7:3", 1000), sysfs)
    assert found[:6] == ("loop3", 7, 3, 0, 1000, Kind(requests=True))
    assert found.writes_in_flight() == 0


def test_partition_is_a_part_of_its_device(sysfs):
    found = find_device(disk("259:0", 600), sysfs)
    assert found[:6] == ("loop3", 7, 3, 100, 600, Kind(requests=True))
    assert found.writes_in_flight() == 3


def test_logical_volume_is_seen_by_its_bios(sysfs):
    assert find_device(disk("253:0", 800), sysfs).kind == Kind(requests=False)


@pytest.mark.parametrize(
    ("number", "sectors", "said"),
    [
        ("9:0", 800, "put the disk on a device-mapper device"),
        ("7:4", 1000, "there is no block device 7:4"),
        ("7:3", 999, "has 511488 bytes and its block device 7:3 512000"),
        ("../7:3", 1000, "not MAJOR:MINOR"),
        ("loop3", 1000, "not MAJOR:MINOR"),
        ("", 1000, "not MAJOR:MINOR"),
    ],
)
def test_what_cannot_be_tracked_is_refused(sysfs, number, sectors, said):
    with pytest.raises(DeviceError, match=said):
        find_device(disk(number, sectors), sysfs)


def test_device_that_counts_nothing_is_refused(sysfs):
    (sysfs / "dev" / "block" / "7:3" / "queue" / "iostats").write_text("0\n")
    with pytest.raises(DeviceError, match=r"echo 1 > .*iostats"):
        find_device(disk("259:0", 600), sysfs)


def test_zoned_device_is_refused(sysfs):
    (sysfs / "dev" / "block" / "7:3" / "queue" / "zoned").write_text("host-managed\n")
    with pytest.raises(DeviceError, match="zoned"):
        find_device(disk("7:3", 1000), sysfs)


@pytest.mark.parametrize("path", ["/nowhere/disk", __file__, "", "nul\0"])
def test_location_that_is_no_block_device_is_refused(path):
    with pytest.raises(DeviceError, match="give the disk's fact 'devno'"):
        find_device(Disk(name="xvda", size=512, location=path))


@pytest.mark.skipif(not os.path.exists("/sys/block"), reason="there is no sysfs")
def test_unknown_number_on_this_machine():
    with pytest.raises(DeviceError, match="no block device 999:999"):
        find_device(disk("999:999", 1))
