"""What a real Xen 4.17 printed, and what is made of it."""

from __future__ import annotations

import re
import socket
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from vmferry.api import Disk
from vmferry.errors import HypervisorError, InputError
from vmferry.units import MIB
from vmferry_hypervisors.xen import describe, qdisk
from vmferry_hypervisors.xen.config import (
    Attachment,
    DomainConfig,
    decode_config,
    encode_config,
    parse_bridges,
)
from vmferry_hypervisors.xen.devices import BlockDevice, decimal_devno
from vmferry_hypervisors.xen.incoming import domain_names
from vmferry_hypervisors.xen.qdisk import qdisk_findings
from vmferry_hypervisors.xen.xenstore import XenStore
from vmferry_hypervisors.xen.xl import DomainRow, parse_info, parse_listed, parse_rows

from .xenstored import FakeXenStored

RECORDED = Path(__file__).with_name("recorded")


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


@pytest.fixture
def config() -> DomainConfig:
    listed = parse_listed(recorded("list.json"))
    assert listed is not None
    return DomainConfig(listed.config)


@pytest.fixture
def values() -> dict[str, str]:
    lines = re.findall(r'^(\S+) = "(.*)"$', recorded("xenstore.txt"), re.MULTILINE)
    return dict(lines)


def test_the_host() -> None:
    host = parse_info(recorded("info.txt"))
    assert host.version == (4, 17)
    assert (host.free, host.total) == (1884 * MIB, 3071 * MIB)
    assert "hap" in host.abilities


def test_a_host_that_says_too_little() -> None:
    with pytest.raises(HypervisorError, match="xen_major"):
        parse_info("free_memory : 12\n")


def test_the_domains() -> None:
    assert parse_rows(recorded("list.txt"))[1] == DomainRow("web", 1, 128, 1, "-b----")


def test_a_name_with_blanks() -> None:
    line = "my own guest                                 7   128     1     -b----     248.8\n"
    assert parse_rows("Name ID\n" + line)[0].name == "my own guest"


def test_the_configuration(config: DomainConfig) -> None:
    assert (config.name, config.type, config.vcpus) == ("web", "pvh", 1)
    assert config.uuid == "adde9da5-56ed-4c61-aef5-91ac5fcf6d8a"
    assert config.memory == 128 * MIB < config.needed_memory < 140 * MIB
    assert list(config.disks) == ["xvda"]
    assert config.findings() == []


def test_the_configuration_survives_the_wire(config: DomainConfig) -> None:
    again = decode_config(encode_config(config._domain))
    assert again._domain == config._domain


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"{}", b'{"version":9,"domain":{}}', b"[1]"])
def test_a_configuration_that_means_nothing_is_refused(data: bytes) -> None:
    with pytest.raises(HypervisorError):
        decode_config(data)


def test_the_configuration_is_made_local(config: DomainConfig) -> None:
    config._domain["nics"] = [{"bridge": "xenbr0", "mac": "m"}, {"bridge": "other"}]
    made = config.localized("web2", {"xvda": Attachment("/dev/mapper/v", "/s")}, {"xenbr0": "br1"})
    domain = msgspec.json.decode(made)
    assert domain["c_info"]["name"] == "web2"
    disk = domain["disks"][0]
    assert disk["pdev_path"] == "/dev/mapper/v"
    assert (disk["script"], disk["backend"], disk["format"]) == ("/s", "phy", "raw")
    assert [nic["bridge"] for nic in domain["nics"]] == ["br1", "other"]
    assert domain["b_info"] == config._domain["b_info"]
    assert config.disks["xvda"]["pdev_path"] == "/dev/mapper/web", "the original was changed"


def test_an_empty_drive_is_left_alone(config: DomainConfig) -> None:
    drive = {"vdev": "hdc", "is_cdrom": 1, "format": "empty"}
    both = DomainConfig({**config._domain, "disks": [*config._domain["disks"], drive]})
    assert list(both.disks) == ["xvda"]
    made = both.localized("web", {"xvda": Attachment("/dev/mapper/v")}, {})
    assert msgspec.json.decode(made)["disks"][1] == drive


def test_disks_that_were_not_agreed_on_are_refused(config: DomainConfig) -> None:
    with pytest.raises(HypervisorError, match="xvdb"):
        config.localized("web", {"xvdb": Attachment("/dev/mapper/v")}, {})


@pytest.mark.parametrize(
    ("section", "value", "code"),
    [
        ("pcidevs", [{"dev": 3}], "guest-devices"),
        ("p9s", [{"path": "/etc"}], "guest-devices"),
        ("nics", [{"script": "/tmp/x"}], "guest-devices"),
        ("c_info", {"type": "hvm", "name": "g"}, "guest-type"),
        ("c_info", {"type": "pv", "name": "g"}, "guest-type"),
        ("b_info", {"max_vcpus": 1, "max_memkb": 4, "device_model": "/x"}, "guest-build"),
    ],
)
def test_what_cannot_or_must_not_be_moved_is_found(
    config: DomainConfig, section: str, value: object, code: str
) -> None:
    found = DomainConfig({**config._domain, section: value}).findings()
    assert [each.code for each in found] == [code]
    assert found[0].remedy


def test_bridges() -> None:
    assert parse_bridges("a=b, c=d") == {"a": "b", "c": "d"}
    with pytest.raises(InputError, match="OLD=NEW"):
        parse_bridges("a")


def test_device_numbers_are_hexadecimal_in_xenstore() -> None:
    assert decimal_devno("fd:1f") == "253:31"


async def test_the_disks(
    values: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def device(devno: str) -> BlockDevice:
        assert devno == "253:0"
        return BlockDevice(devno, "dm-0", 524288 * 512, 512, dm_name="web")

    monkeypatch.setattr(describe, "block_device", device)
    place = tmp_path / "socket"
    async with FakeXenStored(place, values), XenStore(str(place)) as store:
        assert await domain_names(store) == {1: "web"}
        (disk,) = await describe.describe_disks(store, 1)
    assert (disk.name, disk.size, disk.sector_size) == ("xvda", 256 * MIB, 512)
    assert (disk.location, disk.tracker, disk.read_only) == ("/dev/mapper/web", "blkback", False)
    assert disk.facts == {
        "backend": "/local/domain/0/backend/vbd/1/51712",
        "kind": "vbd",
        "device": "/dev/mapper/web",
        "devno": "253:0",
        "dm": "web",
    }


async def test_a_disk_behind_qemu_is_described_and_an_empty_drive_is_not(
    values: dict[str, str], tmp_path: Path
) -> None:
    front, back = "/local/domain/1/device/vbd", "/local/domain/0/backend"
    values = {key: value for key, value in values.items() if "/vbd/" not in key}
    values |= {
        f"{front}/51728/backend": f"{back}/qdisk/1/51728",
        f"{back}/qdisk/1/51728/dev": "xvdb",
        f"{back}/qdisk/1/51728/params": "qcow2:/srv/b.qcow2",
        f"{back}/qdisk/1/51728/mode": "r",
        f"{back}/qdisk/1/51728/sectors": "2048",
        f"{front}/5632/backend": f"{back}/vbd/1/5632",
        f"{back}/vbd/1/5632/dev": "hdc",
        f"{back}/vbd/1/5632/params": "",
    }
    place = tmp_path / "socket"
    async with FakeXenStored(place, values), XenStore(str(place)) as store:
        (disk,) = await describe.describe_disks(store, 1)
    assert (disk.name, disk.facts["kind"], disk.size) == ("xvdb", "qdisk", 1 << 20)
    assert disk.read_only
    assert (disk.volume, disk.location, disk.tracker) == ("raw", "/srv/b.qcow2", "qcow2")
    assert disk.facts["qmp"] == "/var/run/xen/qmp-libxenstat-1"
    assert disk.facts["node"] == "xvdb-qcow2"
    (finding,) = qdisk_findings(disk)
    assert "only raw will do" in finding.text


@pytest.mark.parametrize("params", ["aio:/srv/b.img", "raw:/srv/b.img", "/srv/b.img"])
def test_a_raw_disk_behind_qemu_is_tracked_by_its_monitor(
    params: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdisk, "SOCKETS", str(tmp_path))
    path, fields = "/local/domain/0/backend/qdisk/7/51712", {"dev": "xvda", "params": params}
    served = qdisk.Qdisk.of(path, fields)
    assert served.location == "/srv/b.img"
    assert served.facts["node"] == "xvda-raw"
    disk = Disk(name="xvda", size=512, location=served.location, facts=served.facts)
    (finding,) = qdisk_findings(disk)
    assert "no monitor" in finding.text
    with closing(socket.socket(socket.AF_UNIX)) as monitor:
        monitor.bind(str(tmp_path / "qmp-libxenstat-7"))
        assert qdisk_findings(disk) == []
