"""The laboratory itself: what its page promises of the hosts."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from vmferry_lab import Host, Lab
from vmferry_lab.errors import CommandFailed


def test_both_hosts_run_xen_with_migratable_guests(lab: Lab) -> None:
    for name in ("hosta", "hostb"):
        info = lab.host(name).run("xl info")
        assert "xen_version            : 4.17" in info
        assert "hap" in info.split("virt_caps", 1)[1].splitlines()[0]


def test_each_host_is_itself_and_reaches_the_other(hosta: Host, hostb: Host) -> None:
    assert hosta.run("hostname").strip() == "hosta"
    assert hosta.run("ssh hostb hostname").strip() == "hostb"
    assert hostb.run("ssh hosta hostname").strip() == "hosta"


def test_large_packets_pass_whole(hosta: Host) -> None:
    hosta.run("ping -c 1 -W 30 -M do -s 8900 hostb")


def test_vmferry_is_installed_with_its_xen_plugin(lab: Lab) -> None:
    for name in ("hosta", "hostb"):
        shown = lab.host(name).run("migrate plugins list")
        assert "xen" in shown
        assert "cannot be used" not in shown


def test_installing_again_replaces_what_was_there(lab: Lab, hosta: Host) -> None:
    stray = "/opt/vmferry/lib/python3.11/site-packages/vmferry/stray.py"
    hosta.run(["touch", stray])
    lab.install()
    assert hosta.run(f"test -e {stray} || echo gone").strip() == "gone"
    hosta.run("migrate --version")


def test_files_come_and_go(hosta: Host, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(bytes(range(256)) * 4096)
    hosta.put(tmp_path / "there", "/root/file of the test")
    hosta.get("/root/file of the test", tmp_path / "back")
    hosta.run(["rm", "/root/file of the test"])
    assert (tmp_path / "back").read_bytes() == (tmp_path / "there").read_bytes()


def test_a_command_that_fails_says_where_and_why(hosta: Host) -> None:
    with pytest.raises(CommandFailed, match="hosta: ls /nowhere"):
        hosta.run("ls /nowhere")


def test_a_disk_that_is_shared_leaves_others_as_they_are(
    lab: Lab, hosta: Host, hostb: Host
) -> None:
    if len(lab.hosts()) == len(lab.xen_hosts()):
        pytest.skip(
            "the laboratory is not up with a third host: python -m vmferry_lab up --storage"
        )
    names = [f"shared-{secrets.token_hex(3)}" for _ in range(2)]
    try:
        devices = [lab.share_disk(name, 8 << 20) for name in names]
        for name, device in zip(names, devices, strict=True):
            hosta.run(f"echo {name} | dd of={device} bs=4k conv=sync oflag=direct status=none")
        for name, device in zip(names, devices, strict=True):
            read = hostb.run(f"dd if={device} bs=4k count=1 iflag=direct status=none")
            assert read.startswith(f"{name}\n")
    finally:
        for name in names:
            lab.unshare_disk(name)
