"""A mirrored disk: which commands its hosts are given, and what is read from DRBD's status."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from vmferry_lab.errors import LabError
from vmferry_lab.mirror import Mirror, make_mirror, remove_mirror

MIB = 1 << 20
STATUS = """\
version: 8.4.11 (api:1/proto:86-101)
srcversion: 473968AD625BA317874A57E
 0: cs:StandAlone ro:Primary/Unknown ds:UpToDate/DUnknown   r-----
    ns:7 nr:0 dw:0 dr:0 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:4
 1: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----
    ns:65540 nr:0 dw:0 dr:0 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
"""


class Host:
    def __init__(self, name: str, *, devices: str = "loop0 vda") -> None:
        self.name, self.devices, self.guests = name, devices, self
        self.said: list[str] = []

    def run(self, command: Any, **_: Any) -> str:
        self.said.append(command if isinstance(command, str) else " ".join(command))
        if "cat /proc/drbd\n" in f"{self.said[-1]}\n":
            return STATUS
        return self.devices if self.said[-1] == "ls /sys/block" else ""

    def make_disk(self, name: str, size: int) -> str:
        self.said.append(f"make {name} {size}")
        return f"/dev/mapper/{name}"

    def remove_disk(self, name: str) -> None:
        self.said.append(f"remove {name}")


@pytest.fixture
def hosts() -> tuple[Any, Any]:
    return Host("hosta"), Host("hostb")


def mirror(hosts: tuple[Any, Any], number: int = 1) -> Mirror:
    return Mirror(cast(Any, hosts[0]), cast(Any, hosts[1]), "web", number)


def test_each_host_has_a_disk_of_the_size_and_the_source_alone_may_write(
    hosts: tuple[Any, Any],
) -> None:
    made = make_mirror(*hosts, "web", 64 * MIB)
    assert made.device == "/dev/drbd0"
    for host in hosts:
        assert {f"make web {64 * MIB}", f"make web-meta {MIB}"} <= set(host.said)
        (script,) = [one for one in host.said if "create-md" in one]
        attach = "drbdsetup attach 0 /dev/mapper/web /dev/mapper/web-meta flexible "
        assert re.search(f"^{attach}", script, re.MULTILINE)
        assert "drbdmeta --force 0 v08 /dev/mapper/web-meta flex-external create-md" in script
    hosta, hostb = hosts
    assert hosta.said[-1] == "drbdsetup primary 0 --force"
    assert not [one for one in (*hosta.said, *hostb.said) if "connect" in one.split()]
    assert not [one for one in hostb.said if "primary" in one]


def test_a_number_that_either_host_uses_is_not_taken() -> None:
    hosta, hostb = Host("hosta", devices="drbd0 vda"), Host("hostb", devices="vda\ndrbd1")
    made = make_mirror(cast(Any, hosta), cast(Any, hostb), "web", MIB)
    assert made.device == "/dev/drbd2"


@pytest.mark.parametrize("gibibytes", [1, 16, 4096])
def test_there_is_room_for_a_bit_of_each_block(hosts: tuple[Any, Any], gibibytes: int) -> None:
    size = gibibytes << 30
    make_mirror(*hosts, "web", size)
    (made,) = [one for one in hosts[0].said if one.startswith("make web-meta")]
    assert int(made.split()[-1]) >= size // 4096 // 8 + 72 * 512
    assert int(made.split()[-1]) % 4096 == 0


def test_each_host_is_told_its_own_address_first(hosts: tuple[Any, Any]) -> None:
    mirror(hosts).connect()
    there, here = "ipv4:10.83.0.12:7789", "ipv4:10.83.0.11:7789"
    assert hosts[0].said[0].startswith(f"drbdsetup connect web {here} {there} --protocol=C")
    assert hosts[1].said[0].startswith(f"drbdsetup connect web {there} {here} --protocol=C")
    assert all("--allow-two-primaries=yes" in host.said[0] for host in hosts)


def test_both_hosts_are_asked_whether_the_disks_are_the_same(hosts: tuple[Any, Any]) -> None:
    assert mirror(hosts).await_copy(timeout=60) == 65540 * 1024
    assert [len(host.said) for host in hosts] == [1, 1], "what was sent costs no command"
    for host in hosts:
        assert host.said[0].startswith("timeout 60 sh -c ")
        assert "ds:UpToDate/UpToDate" in host.said[0]


def waits(tmp_path: Path, hosts: tuple[Any, Any], number: int, status: str) -> int | None:
    """The exit code of what waits for a copy on a host with this status, if it ends soon."""
    mirror(hosts, number).await_copy(timeout=60)
    (tmp_path / "drbd").write_text(status)
    script = hosts[0].said[0].partition("sh -c ")[2].replace("/proc/drbd", str(tmp_path / "drbd"))
    try:
        return subprocess.run(
            ["sh", "-c", script], timeout=1.0, capture_output=True, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return None


@pytest.mark.real
@pytest.mark.parametrize(
    ("number", "change", "code"),
    [
        (1, ("", ""), 0),
        (0, ("", ""), 1),
        (1, ("cs:Connected", "cs:SyncSource"), None),
        (1, ("UpToDate/UpToDate", "UpToDate/Inconsistent"), None),
    ],
    ids=["alike", "apart", "under way", "not alike"],
)
def test_only_disks_that_are_the_same_end_the_wait(
    tmp_path: Path,
    hosts: tuple[Any, Any],
    number: int,
    change: tuple[str, str],
    code: int | None,
) -> None:
    assert waits(tmp_path, hosts, number, STATUS.replace(*change)) == code


def test_the_source_is_parted_with_before_the_destination(hosts: tuple[Any, Any]) -> None:
    mirror(hosts).promote()
    mirror(hosts).part()
    hosta, hostb = hosts
    assert "drbdsetup secondary 1" in hosta.said[0]
    assert hosta.said[1].startswith("drbdsetup disconnect ipv4:10.83.0.11:")
    assert hostb.said[0] == "drbdsetup primary 1"
    assert hostb.said[1].startswith("drbdsetup disconnect ipv4:10.83.0.12:")


def test_what_was_sent_is_the_count_of_its_own_device(hosts: tuple[Any, Any]) -> None:
    assert mirror(hosts).sent() == 65540 * 1024
    with pytest.raises(LabError, match="hosta knows no /dev/drbd2"):
        mirror(hosts, 2).sent()


def test_all_there_may_be_of_it_is_removed_from_both_hosts(hosts: tuple[Any, Any]) -> None:
    remove_mirror(list(hosts), "web")
    for host in hosts:
        assert "drbdsetup down web" in host.said[0]
        assert host.said[1:] == ["remove web", "remove web-meta"]


@pytest.mark.real
@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("echo held open; exit 11", 1)])
def test_a_device_that_is_held_open_is_tried_again_and_then_told(
    tmp_path: Path, hosts: tuple[Any, Any], script: str, code: int
) -> None:
    remove_mirror(list(hosts), "web")
    program = tmp_path / "drbdsetup"
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n{script}\n')
    program.chmod(0o755)
    (tmp_path / "sleep").symlink_to("/bin/true")
    done = subprocess.run(
        ["/bin/sh", "-c", hosts[0].said[0]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert set(calls) == {"down web"}
    assert len(calls) == (1 if code == 0 else 41)
    assert done.stderr.strip() == ("" if code == 0 else "held open")
