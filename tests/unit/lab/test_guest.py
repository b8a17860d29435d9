from __future__ import annotations

from vmferry_lab.guest import GuestConfig


def test_a_guest_sees_its_disks_in_order() -> None:
    text = GuestConfig("web", ["/dev/mapper/one", "/dev/mapper/two"]).text()
    shared = "format=raw, vdev={}, access=w, backendtype=phy, target=/dev/mapper/{}"
    one, two = shared.format("xvda", "one"), shared.format("xvdb", "two")
    assert f'disk = ["{one}", "{two}"]' in text
    assert "writer.disks=xvda,xvdb" in text


def test_its_disks_can_be_served_by_qemu() -> None:
    assert "backendtype=qdisk" in GuestConfig("web", ["/dev/x"], backend="qdisk").text()


def test_the_writer_gets_its_options_on_the_command_line() -> None:
    text = GuestConfig("web", ["/dev/x"], writer={"rate": "max", "discard": 50}).text()
    line = next(line for line in text.splitlines() if line.startswith("cmdline"))
    assert "writer.rate=max writer.discard=50" in line


def test_a_guest_is_pvh_since_others_cannot_migrate() -> None:
    assert 'type = "pvh"' in GuestConfig("web", []).text()


def test_a_network_card_is_on_the_lan_and_only_if_asked() -> None:
    assert "vif = []" in GuestConfig("web", []).text()
    assert 'vif = ["bridge=xenbr0"]' in GuestConfig("web", [], network=True).text()


def test_the_writer_leaves_fio_its_disk() -> None:
    config = GuestConfig("web", ["/dev/x", "/dev/y"], initrd="/srv/disks/web.initrd", others=1)
    assert "writer.disks=xvdb " in config.text().replace('"', " ")
    assert 'ramdisk = "/srv/disks/web.initrd"' in config.text()
