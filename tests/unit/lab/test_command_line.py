from __future__ import annotations

from itertools import pairwise

import pytest

from vmferry_lab.layout import HOSTS, STORAGE
from vmferry_lab.machine import Shape, command_line

HOSTA, HOSTB = HOSTS


def _value(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def _values(argv: list[str], option: str) -> list[str]:
    return [value for word, value in pairwise(argv) if word == option]


@pytest.fixture
def hosta() -> list[str]:
    return command_line(HOSTA, Shape(), ssh_port=2201, peers=["hostb"])


def test_xen_is_booted_by_multiboot_with_the_kernel_as_its_first_module(hosta: list[str]) -> None:
    assert _value(hosta, "-kernel") == "xen"
    kernel, initrd = _value(hosta, "-initrd").split(",")
    assert kernel.split()[0] == "vmlinuz"
    assert "root=/dev/vda" in kernel
    assert initrd == "initrd.img"


def test_dom0_leaves_memory_for_guests(hosta: list[str]) -> None:
    assert "dom0_mem=1024M,max:1024M" in _value(hosta, "-append")
    assert int(_value(hosta, "-m")) >= 2048


def test_the_cpu_has_what_guests_need_to_migrate_and_not_what_crashes_dom0(
    hosta: list[str],
) -> None:
    flags = _value(hosta, "-cpu").split(",")
    assert {"+svm", "+npt"} <= set(flags)
    assert flags[0] == "qemu64"


def test_the_way_in_is_open_to_this_machine_alone(hosta: list[str]) -> None:
    ways = [value for value in _values(hosta, "-netdev") if value.startswith("user")]
    assert ways == ["user,id=way-in,hostfwd=tcp:127.0.0.1:2201-:22"]


def test_the_cable_between_two_hosts_has_both_ends(hosta: list[str]) -> None:
    hostb = command_line(HOSTB, Shape(), ssh_port=2202, peers=["hosta"])
    here, there = _lan_paths(hosta)[0]
    assert _lan_paths(hostb) == [(there, here)]


def test_the_storage_host_joins_the_cables_of_the_others() -> None:
    hostc = command_line(STORAGE, Shape(xen=False), ssh_port=1, peers=["hosta", "hostb"], hub=True)
    hosta = command_line(HOSTA, Shape(), ssh_port=2, peers=["hostc"])
    here, there = _lan_paths(hosta)[0]
    assert (there, here) in _lan_paths(hostc)
    assert len(_lan_paths(hostc)) == 2
    ports = [value for value in _values(hostc, "-netdev") if value.startswith("hubport")]
    assert len(ports) == 3
    assert all("hubid=1" in port for port in ports)


def test_a_host_without_xen_boots_the_kernel_itself() -> None:
    argv = command_line(STORAGE, Shape(xen=False), ssh_port=1, peers=["hosta"], hub=True)
    assert _value(argv, "-kernel") == "vmlinuz"
    assert "console=ttyS0" in _value(argv, "-append")


def test_no_two_cards_have_the_same_address() -> None:
    macs = [place.mac(card) for place in (*HOSTS, STORAGE) for card in (0, 1)]
    assert len(set(macs)) == len(macs)


def test_no_path_leads_out_of_the_laboratory(hosta: list[str]) -> None:
    words = [word.replace("../logs/", "").replace("root=/dev/vda", "") for word in hosta]
    assert not [word for word in words if "/" in word]


def _lan_paths(argv: list[str]) -> list[tuple[str, str]]:
    paths = []
    for cable in _values(argv, "-netdev"):
        fields = dict(field.split("=", 1) for field in cable.split(",") if "=" in field)
        if cable.startswith("dgram"):
            paths.append((fields["local.path"], fields["remote.path"]))
    return paths
