"""Bad input: a clear error that names it, before anything is changed; the guest is untouched."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmferry.api import Access, Address, Disk, Guest
from vmferry.errors import PeerError
from vmferry.plugins import load
from vmferry.wire.codec import encode
from vmferry.wire.handshake import greet
from vmferry.wire.link import LIMITS, Link
from vmferry.wire.messages import (
    PROTOCOL_NEWEST,
    Accepted,
    Extent,
    Hello,
    Offer,
    Refused,
    Welcome,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture
async def ready(hosts: Any) -> AsyncIterator[tuple[Any, str]]:
    """A running guest and an agent's address; afterwards the guest must still be writing."""
    await hosts.start_guest(size=8 << 20)
    yield hosts, hosts.start_agent()
    before = (await hosts.trial.status()).writes
    await asyncio.sleep(0.3)
    assert (await hosts.trial.status()).writes > before
    assert list((hosts.folder / "destination").iterdir()) == []


Ready = tuple[Any, str]


def pool(hosts: Any) -> list[str]:
    return sorted(path.name for path in (hosts.folder / "pool").iterdir())


async def test_an_unknown_guest_lists_those_there_are(ready: Ready) -> None:
    hosts, address = ready
    result = hosts.migrate("run", "nobody", address)
    assert result.returncode == 2
    assert "no guest named 'nobody'; there are: demo" in result.stderr
    assert pool(hosts) == []


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--hypervisor", "vmware"), 2, "no hypervisor plugin named 'vmware'; there are: process"),
        (("--tracker", "guess"), 3, "no tracker plugin named 'guess'; there are: "),
        (("--block-size", "1000"), 2, "--block-size 1000 is not a power of two"),
        (("--block-size", "256"), 2, "--block-size"),
        (("--lanes", "0"), 2, "--lanes"),
        (("--bandwidth", "fast"), 2, "'fast' is not a size"),
        (("--tracker-opt", "export.colour=red"), 2, "colour"),
        (("--piece", "4KiB"), 3, "smaller than a block"),
    ],
)
async def test_options_that_cannot_be(
    ready: Ready, options: tuple[str, ...], code: int, said: str
) -> None:
    hosts, address = ready
    result = hosts.migrate("run", hosts.guest, address, *options)
    assert (result.returncode, said in result.stderr) == (code, True), result.stderr
    assert pool(hosts) == []


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("hostb", 2, "'hostb' is not an address"),
        ("pigeon://hostb", 2, "no transport plugin named 'pigeon'; there are: memory, "),
        ("tcp://127.0.0.1:1", 7, "127.0.0.1:1"),
        ("tcp://no-such-host.invalid:7420", 7, "no-such-host.invalid"),
    ],
)
async def test_destinations_that_cannot_be(ready: Ready, url: str, code: int, said: str) -> None:
    hosts, _ = ready
    result = hosts.migrate("run", hosts.guest, url)
    assert (result.returncode, said in result.stderr) == (code, True), result.stderr


async def test_a_target_that_exists_is_not_overwritten(ready: Ready) -> None:
    hosts, address = ready
    Path(hosts.arrived).write_bytes(b"precious" * 64)
    for name in ("check", "run"):
        result = hosts.migrate(name, hosts.guest, address)
        assert result.returncode == 3
        assert hosts.arrived in result.stdout + result.stderr
    assert Path(hosts.arrived).read_bytes() == b"precious" * 64


async def test_check_changes_nothing_and_says_yes(ready: Ready) -> None:
    hosts, address = ready
    result = hosts.migrate("check", hosts.guest, address)
    assert result.returncode == 0, result.stderr
    assert f"demo can migrate to {address}" in result.stdout
    assert pool(hosts) == []


async def test_an_agent_does_not_listen_to_the_world_without_tls(hosts: Any) -> None:
    (hosts.folder / "pool").mkdir()
    command = ["serve", "tcp://0.0.0.0:0", "--pool", str(hosts.folder / "pool")]
    result = hosts.migrate(*command)
    assert result.returncode == 2
    assert "insecure" in result.stderr


async def test_a_name_taken_at_the_destination(hosts: Any) -> None:
    await hosts.start_guest(size=8 << 20)
    taken = hosts.folder / "destination" / hosts.guest
    taken.mkdir()
    definition = hosts.folder / "source" / hosts.guest / "guest.json"
    (taken / "guest.json").write_bytes(definition.read_bytes())
    result = hosts.migrate("check", hosts.guest, hosts.start_agent())
    assert result.returncode == 3
    assert hosts.guest in result.stdout


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A loop device of 8 MiB that holds old data."""
    backing = tmp_path / "device.raw"
    backing.write_bytes(b"\xaa" * (8 << 20))
    made = subprocess.run(
        ["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


async def test_a_device_that_is_too_small(hosts: Any, device: str) -> None:
    await hosts.start_guest(size=16 << 20)
    result = hosts.migrate("run", hosts.guest, hosts.start_agent("--place", f"disk0={device}"))
    assert result.returncode == 3
    assert device in result.stderr


async def test_a_device_that_is_busy(hosts: Any, device: str) -> None:
    await hosts.start_guest(size=8 << 20)
    async with await load("volume", "raw").open(device, Access.WRITE):
        result = hosts.migrate("run", hosts.guest, hosts.start_agent("--place", f"disk0={device}"))
    assert result.returncode == 3
    assert device in result.stderr


@pytest.mark.parametrize("larger", [0, 1 << 20])
async def test_a_device_with_old_data_is_overwritten_whole(
    hosts: Any, device: str, larger: int
) -> None:
    await hosts.start_guest(size=(8 << 20) - larger, prefill="0.3")
    address = hosts.start_agent("--place", f"disk0={device}")
    result = hosts.migrate("run", hosts.guest, address)
    assert result.returncode == 0, result.stderr
    assert (await hosts.trial.verdict(device)).good


# -- hostile peers: a source that lies


async def connected(address: str, channels: int = 0) -> Link:
    where = Address.parse(address)
    connection = await load("transport", "tcp").connect(where, lanes=4, limits=LIMITS)
    return Link(connection, channels=channels)


def offer(**disk: Any) -> Offer:
    one = Disk(**{"name": "disk0", "size": 1 << 20, **disk})
    guest = Guest(name="evil", hypervisor="process", memory=1 << 20, disks=(one,))
    return Offer(guest=guest, block_sizes=(65536,), check_only=True)


async def test_another_protocol_version_is_named(ready: Ready) -> None:
    _, address = ready
    async with await connected(address) as link:
        future = PROTOCOL_NEWEST + 7
        await link.send(Hello(oldest=future, newest=future, agent="future", job="a1b2c3d4"))
        with pytest.raises(PeerError, match="no common protocol version"):
            await link.guard(link.expect(Welcome))


async def test_names_that_would_leave_the_pool_are_refused(ready: Ready) -> None:
    hosts, address = ready
    async with await connected(address) as link:
        await greet(link, "a1b2c3d4")
        evil = Guest(name="../../etc/cron.d/x", hypervisor="process", disks=offer().guest.disks)
        await link.send(Offer(guest=evil, block_sizes=(65536,)))
        reply = await link.guard(link.expect(Refused))
    assert any("cannot be used as a file name" in one.text for one in reply.findings)
    assert pool(hosts) == []


async def test_channels_that_the_hypervisor_cannot_use_are_refused_by_either_side(
    ready: Ready,
) -> None:
    hosts, address = ready
    result = hosts.migrate("run", hosts.guest, address, "--memory-channels", "2")
    assert result.returncode == 3
    assert "leave --memory-channels out" in result.stderr
    async with await connected(address, channels=1) as link:
        await greet(link, "a1b2c3d4")
        await link.send(offer())
        reply = await link.guard(link.expect(Refused))
    assert any(one.code == "memory-channels" for one in reply.findings)
    assert pool(hosts) == []


async def test_more_channels_than_there_are_lanes_end_the_connection(ready: Ready) -> None:
    _, address = ready
    async with await connected(address) as link:
        hello = Hello(oldest=1, newest=1, agent="evil", job="a1b2c3d4", channels=16)
        await link.send(hello)
        with pytest.raises(PeerError, match="needs 19 lanes, the peer opened 4"):
            await link.guard(link.expect(Welcome))


async def test_a_disk_of_impossible_size_is_refused(ready: Ready) -> None:
    hosts, address = ready
    async with await connected(address) as link:
        await greet(link, "a1b2c3d4")
        await link.send(offer(size=(1 << 53) - 512))
        reply, _ = await link.guard(link.receive(Refused, Accepted))
    assert isinstance(reply, Refused), reply
    assert pool(hosts) == []


@pytest.mark.parametrize(
    ("extent", "said"),
    [
        (Extent(disk=7, offset=0, length=512, zero=True), "no disk 7"),
        (Extent(disk=0, offset=8 << 20, length=512, zero=True), "reach beyond"),
        (Extent(disk=0, offset=1, length=512, zero=True), "no whole sector"),
        (Extent(disk=0, offset=0, length=512, digest=b"x" * 32), "BLAKE3"),
        (Extent(disk=0, offset=0, length=1024, digest=b"x" * 32), "length says 1024"),
    ],
)
async def test_extents_that_lie_end_the_job_and_leave_nothing(
    ready: Ready, extent: Extent, said: str
) -> None:
    hosts, address = ready
    described = await load(
        "hypervisor", "process", {"state_dir": str(hosts.folder / "source")}
    ).describe(hosts.guest)
    async with await connected(address) as link:
        await greet(link, "a1b2c3d4")
        await link.send(Offer(guest=described, block_sizes=(65536,)))
        await link.guard(link.expect(Accepted))
        payload = b"" if extent.zero else bytes(512)
        await link.bulk_lanes[0].send(encode(extent), payload)
        with pytest.raises(PeerError, match=said):
            await link.guard(asyncio.Event().wait())
    for _ in range(50):
        if not pool(hosts):
            break
        await asyncio.sleep(0.1)
    assert pool(hosts) == []
