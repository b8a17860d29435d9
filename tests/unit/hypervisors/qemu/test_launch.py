"""The operator's command line with an untrusted guest's values in it."""

import json
import shutil
import sys

import msgspec
import pytest

from vmferry.api.guest import Disk, Guest
from vmferry.errors import HypervisorError, InputError, OptionError
from vmferry_hypervisors.qemu.config import Config
from vmferry_hypervisors.qemu.launch import command_line, start_qemu
from vmferry_hypervisors.qemu.monitors import Place

CONFIG = msgspec.json.encode(Config(qemu=(7, 2, 0), machine="pc-q35-7.2"))
GUEST = Guest(
    name="web1",
    uuid="6c8f1b0e-7d8e-4a54-9a4f-1f6c0c1f7c11",
    hypervisor="qemu",
    memory=256 << 20,
    vcpus=2,
    disks=(Disk(name="vda", size=1 << 20), Disk(name="vdb", size=1 << 21, read_only=True)),
    config=CONFIG,
)
COMMAND = f"{sys.executable} -name {{name}} -M {{machine}} -m {{memory}} -smp {{vcpus}}"
DISKS = " -device virtio-blk-pci,drive={disk:vda} -device virtio-blk-pci,drive={disk:vdb}"


def test_placeholders_are_replaced():
    words = command_line(COMMAND + DISKS, GUEST)
    assert words[1:9] == ["-name", "web1", "-M", "pc-q35-7.2", "-m", "256", "-smp", "2"]
    assert "virtio-blk-pci,drive=vmferry-disk0" in words
    assert words[-3:] == ["-S", "-incoming", "defer"]


def test_each_disk_begins_as_nothing_of_its_size():
    words = command_line(COMMAND + DISKS, GUEST)
    nodes = [json.loads(words[at + 1]) for at, word in enumerate(words) if word == "-blockdev"]
    assert [node["size"] for node in nodes if node["driver"] == "null-co"] == [1 << 20, 1 << 21]
    assert [node["read-only"] for node in nodes if node["driver"] == "raw"] == [False, True]


def test_braces_that_are_no_placeholder_stay():
    words = command_line(COMMAND + DISKS + """ -object '{"qom-type": "iothread"}' """, GUEST)
    assert '{"qom-type": "iothread"}' in words


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (COMMAND, "no device for"),
        (COMMAND + DISKS + " -device x,drive={disk:vdc}", "vdc"),
        (COMMAND + " 'unended", "command"),
        ("/no/such/program" + DISKS, "no program"),
        ("", "no program"),
    ],
)
def test_a_command_that_cannot_do_is_refused(command, words):
    with pytest.raises(OptionError, match=words):
        command_line(command, GUEST)


@pytest.mark.parametrize("name", ["a,debug-threads=on", "-name", "../x", "a b", ""])
def test_a_name_cannot_bring_options_of_its_own(name):
    with pytest.raises(InputError, match="name"):
        command_line(COMMAND + DISKS, msgspec.structs.replace(GUEST, name=name))


def test_an_identity_cannot_bring_options_of_its_own():
    with pytest.raises(InputError):
        command_line(COMMAND + DISKS, msgspec.structs.replace(GUEST, uuid="1,x=y"))


async def test_a_program_that_ends_at_once_is_quoted(tmp_path):
    started = await start_qemu(
        ["/bin/sh", "-c", "echo no such machine; exit 3"], tmp_path / "x.qmp"
    )
    with pytest.raises(Exception, match="no such machine"):
        await started.connected(30)
    await started.kill()
    await started.kill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU")
async def test_a_qemu_that_lacks_a_device_is_quoted(tmp_path):
    """It refuses devices only after its monitor has a client."""
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-device", "no-such"]
    started = await start_qemu(words, tmp_path / "with,comma.qmp")
    with pytest.raises(HypervisorError, match=r"(?s)ended at once.*no-such"):
        await started.connected(60)
    await started.kill()


class TestPlace:
    def test_a_folder_means_all_sockets_in_it(self, tmp_path):
        place = Place(str(tmp_path))
        (tmp_path / "a.qmp").touch()
        (tmp_path / "a.log").touch()
        assert place.sockets() == [str(tmp_path / "a.qmp")]
        assert place.name_of(str(tmp_path / "a.qmp")) == "a"
        assert place.of("b") == tmp_path / "b.qmp"

    def test_a_pattern_gives_the_name_its_place(self, tmp_path):
        place = Place(str(tmp_path / "vm-*.monitor"))
        assert place.of("b") == tmp_path / "vm-b.monitor"
        assert place.name_of("/x/vm-b.monitor") == "b"

    @pytest.mark.parametrize("sockets", ["/a/*/b.qmp", "/a/*-*.qmp", "/a/*/*.qmp"])
    def test_other_patterns_are_refused(self, sockets):
        with pytest.raises(OptionError, match="one \\*"):
            Place(sockets)
