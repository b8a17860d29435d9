"""What must be the same on both sides."""

import msgspec
import pytest

from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.config import Config, decode_config, differences

HERE = Config(
    qemu=(7, 2, 22),
    machine="pc-i440fx-7.2",
    cpu="qemu64-x86_64-cpu",
    features={"1.EDX": 0x0F8BFBFD, "1.ECX": 0x80802001},
    devices=("00.0 8086:1237", "02.0 1af4:1001", "virtio-blk-pci"),
)


def changed(**fields):
    return msgspec.structs.replace(HERE, **fields)


def test_the_same_fits():
    assert differences(HERE, HERE) == []


def test_more_features_at_the_destination_fit():
    assert differences(HERE, changed(features={**HERE.features, "7.EBX": 1})) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"machine": "pc-q35-7.2"}, "machine type pc-q35-7.2"),
        ({"cpu": "max-x86_64-cpu"}, "processor max-x86_64-cpu"),
        ({"features": {"1.EDX": 0x0F8BFBFD}}, "1.ECX:0x80802001"),
        ({"features": {"1.EDX": 0x0F8BFBFC, "1.ECX": 0x80802001}}, "1.EDX:0x1"),
        ({"devices": HERE.devices[:-1]}, "device virtio-blk-pci is missing"),
        ({"devices": (*HERE.devices, "03.0 1af4:1001")}, "03.0 1af4:1001 is not in the source"),
        ({"devices": (*HERE.devices, "virtio-blk-pci")}, "virtio-blk-pci is not in the source"),
    ],
)
def test_each_difference_is_named(other, words):
    (found,) = differences(HERE, changed(**other))
    assert words in found


def test_it_survives_the_wire():
    assert decode_config(msgspec.json.encode(HERE)) == HERE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"version": 1, "machine": "\xff"}',
        b'{"version": 2}',
        b'{"version": 1}',
        msgspec.json.encode({**msgspec.to_builtins(HERE), "machine": "pc,accel=kvm"}),
        msgspec.json.encode({**msgspec.to_builtins(HERE), "more": 1}),
    ],
)
def test_what_is_not_ours_is_refused(data):
    with pytest.raises(HypervisorError, match="configuration"):
        decode_config(data)
