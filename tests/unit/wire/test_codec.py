from __future__ import annotations

from typing import Any

import msgpack
import pytest

from vmferry.api import Disk, Finding, Guest
from vmferry.errors import DigestMismatch, ProtocolError
from vmferry.wire import messages
from vmferry.wire.codec import MAX_HEAD, decode, encode, summed
from vmferry.wire.messages import MESSAGES, Message

GUEST = Guest(
    name="web1",
    hypervisor="process",
    memory=1 << 26,
    disks=(Disk(name="disk0", size=1 << 30, facts={"control": "/run/x"}),),
    config=b"\x00\xff",
)
ONE_OF_EACH: dict[type[Message], Message] = {
    type(message): message
    for message in (
        messages.Hello(oldest=1, newest=2, agent="x", job="a1b2c3d4", codecs=("zstd",)),
        messages.Welcome(version=1, agent="y"),
        messages.Offer(guest=GUEST, block_sizes=(65536,)),
        messages.Accepted(
            token=b"t" * 16,
            disks=(messages.AcceptedDisk(location="/pool/x", blank=True),),
            findings=(Finding.info("code", "text"),),
        ),
        messages.Refused(findings=(Finding.error("code", "text", "remedy"),)),
        messages.Extent(disk=0, offset=4096, length=65536, digest=b"d" * 32, codec=2),
        messages.Barrier(serial=7, durable=True),
        messages.Reached(serial=7),
        messages.Stream(length=4096, digest=b"d" * 32, codec=2),
        messages.Taken(total=1 << 40),
        messages.Suspended(),
        messages.PendingMap(disk=1, block_size=4096, total=100, offset=0, digest=b"d" * 32),
        messages.Ready(epoch=3),
        messages.Go(epoch=3),
        messages.Running(epoch=3, seconds=0.01),
        messages.Attach(epoch=7),
        messages.Resumed(epoch=3, running=True, local=True),
        messages.Compare(disk=1, offset=1 << 20, length=1 << 20, piece=65536),
        messages.Digests(disk=1, offset=1 << 20, digest=b"d" * 32),
        messages.Inquire(),
        messages.Withdraw(epoch=3, reason="because"),
        messages.Account(epoch=3, phase="stop", ready=True, withdrawn=True, error="why"),
        messages.Fetch(disk=0, offset=0, length=4096),
        messages.Pushed(),
        messages.Local(on_demand=3, guest_downtime=0.02),
        messages.Bye(),
        messages.Heartbeat(),
        messages.Failure(kind="VolumeError", text="no space"),
    )
}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_wire(kind: type[Message]) -> None:
    assert decode(encode(ONE_OF_EACH[kind])) == ONE_OF_EACH[kind]


def plain(kind: str, **fields: Any) -> bytes:
    return packed({"t": kind, **fields})


def packed(content: object) -> bytes:
    return summed(msgpack.packb(content))


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (plain("Extent", disk=-1, offset=0, length=1), r"'Extent': .*`\$\.disk`"),
        (plain("Compare", disk=0, offset=0, length=1, piece=1), r"'Compare': .*`\$\.piece`"),
        (plain("Extent", disk=0, offset="0", length=1), r"'Extent': .*`\$\.offset`"),
        (plain("Extent", disk=0, offset=0, length=1 << 40), r"'Extent': .*`\$\.length`"),
        (plain("Extent", disk=0, offset=0), "'Extent': .*missing.*`length`"),
        (plain("Hello", oldest=1, newest=1, agent="x", job="../../etc"), r"`\$\.job`"),
        (plain("PendingMap", disk=0, block_size=1, total=1, offset=0), r"`\$\.block_size`"),
        (plain("Go", epoch=0), r"`\$\.epoch`"),
        (plain("Root", rights="all"), "no known message: 'Root'"),
        (packed([1, 2]), "no known message"),
        (packed({"t": ["Go"]}), "no known message"),
        (packed({1: 2}), "not MessagePack"),
        (summed(plain("Go", epoch=1)[:-4] + b"\x00"), "not MessagePack"),
        (summed(b""), "not MessagePack"),
        (summed(b"\xc1"), "not MessagePack"),
        (summed(b"\xdd\xff\xff\xff\xff"), "not MessagePack"),
        (summed(b"\x91" * 5000), "not MessagePack"),
        (b"", "changed on the way"),
        (b"\0\0\0", "changed on the way"),
        (b"x" * (MAX_HEAD + 1), "exceeds the limit"),
    ],
)
def test_a_bad_head_is_refused_and_the_field_named(head: bytes, named: str) -> None:
    with pytest.raises(ProtocolError, match=named):
        decode(head)


def test_no_flipped_bit_goes_unnoticed() -> None:
    head = encode(ONE_OF_EACH[messages.Extent])
    for bit in range(8 * len(head)):
        flipped = bytearray(head)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DigestMismatch, match="changed on the way"):
            decode(bytes(flipped))


def test_unknown_fields_are_left_for_later_versions() -> None:
    assert decode(plain("Go", epoch=1, colour="red")) == messages.Go(epoch=1)


def test_disk_names_cannot_be_paths() -> None:
    disk = {"name": "../x", "size": 4096}
    guest = {"name": "g", "hypervisor": "process", "disks": [disk]}
    with pytest.raises(ProtocolError, match=r"guest\.disks\[0\]\.name"):
        decode(plain("Offer", guest=guest, block_sizes=[4096]))
