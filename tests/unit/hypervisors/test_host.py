"""A host that is a folder: definitions, findings, consoles, starting and control."""

import asyncio
import os

import msgspec
import numpy as np
import pytest

from vmferry.api.findings import Severity
from vmferry.api.guest import ArrivingDisk, Disk, Guest
from vmferry.errors import GuestNotFound, GuestStopped, HypervisorError, InputError
from vmferry.testing.streams import stream_pair
from vmferry_hypervisors.process.checker import logged_entries
from vmferry_hypervisors.process.console import Console, Event, read_console
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.driver import ProcessHypervisor
from vmferry_hypervisors.process.folder import AttachedDisk, Definition, GuestFolder, list_guests
from vmferry_hypervisors.process.image import create_disk
from vmferry_hypervisors.process.judge import entry
from vmferry_hypervisors.process.launch import launch
from vmferry_hypervisors.process.options import ProcessOptions
from vmferry_hypervisors.process.workload import Kind, Splitmix, Workload

MIB = 1 << 20
CONFIG = b'{"version": 1, "workload": {}}'


@pytest.fixture
def host(tmp_path):
    options = ProcessOptions(state_dir=str(tmp_path / "host"), host_memory=32 * MIB, timeout=60)
    return ProcessHypervisor(options)


def arriving(**changes):
    fields = {"name": "one", "hypervisor": "process", "memory": 16 * MIB, "config": CONFIG}
    return Guest(**{**fields, **changes})


def definition(folder, name="one", url=None, **changes):
    path = folder / f"{name}.raw"
    create_disk(path, MIB, 4096, 0)
    disk = Disk(name="disk0", size=MIB, location=str(path))
    return Definition(
        name=name, memory=MIB, disks=(AttachedDisk(disk, url or f"file:{path}"),), **changes
    )


class TestFindings:
    async def codes(self, host, guest):
        found = await host.check_arrival(guest)
        assert all(finding.severity is Severity.ERROR for finding in found)
        assert all(finding.remedy for finding in found)
        return [finding.code for finding in found]

    async def test_guest_that_fits_may_come(self, host):
        assert await self.codes(host, arriving()) == []
        assert not host.options.state.exists()

    async def test_memory_is_counted(self, host, tmp_path):
        assert await self.codes(host, arriving(memory=33 * MIB)) == ["memory-short"]
        GuestFolder(host.options.state, "two").define(definition(tmp_path, "two"))
        assert await self.codes(host, arriving(memory=32 * MIB)) == ["memory-short"]
        assert await self.codes(host, arriving(memory=31 * MIB)) == []

    async def test_machine_says_what_is_available(self):
        roomy = ProcessHypervisor(ProcessOptions(state_dir="/nonexistent"))
        assert await self.codes(roomy, arriving()) == []
        assert await self.codes(roomy, arriving(memory=1 << 42)) == ["memory-short"]

    async def test_name_is_looked_up(self, host, tmp_path):
        GuestFolder(host.options.state, "one").define(definition(tmp_path))
        assert await self.codes(host, arriving()) == ["name-taken"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"config": b""},
            {"config": b"{}"},
            {"config": b'{"version": 2, "workload": {}}'},
            {"config": b'{"version": 1, "workload": {"io_size": 1}}'},
            {"config": b'{"version": 1, "workload": {}, "more": 1}'},
            {"memory": 0},
            {"memory": 16 * MIB + 1},
            {"name": "../up"},
            {"name": "a b"},
            {"hypervisor": "xen"},
        ],
        ids=str,
    )
    async def test_what_cannot_be_built_is_refused(self, host, changes):
        assert await self.codes(host, arriving(**changes)) == ["config-unknown"]
        with pytest.raises(HypervisorError):
            await host.arrive(arriving(**changes), [], stream_pair()[1])
        assert not list(list_guests(host.options.state))


class TestArrive:
    @pytest.fixture
    def guest(self):
        return arriving(disks=(Disk(name="disk0", size=MIB),))

    async def test_disks_must_be_those_described(self, host, guest):
        with pytest.raises(HypervisorError, match="disk0"):
            await host.arrive(guest, [], stream_pair()[1])

    async def test_only_raw_volumes_can_be_pivoted_to(self, host, guest):
        disk = ArrivingDisk(disk=guest.disks[0], volume="qcow2", location="/x", export="file:/x")
        with pytest.raises(HypervisorError, match="use raw"):
            await host.arrive(guest, [disk], stream_pair()[1])

    async def test_nothing_can_be_activated_that_is_not_complete(self, host, guest):
        disk = ArrivingDisk(disk=guest.disks[0], volume="raw", location="/x", export="file:/x")
        arrival = await host.arrive(guest, [disk], stream_pair()[1])
        try:
            with pytest.raises(HypervisorError, match="not complete"):
                await arrival.activate()
            assert list(await host.guests()) == []
            with pytest.raises(GuestNotFound):
                await host.describe("one")
        finally:
            await arrival.abort()
        assert not list(host.options.state.iterdir())

    async def test_console_of_an_earlier_stay_outlives_an_abort(self, host, guest):
        console = host.options.state / "one" / "console.log"
        console.parent.mkdir(parents=True)
        console.write_bytes(b"x" * 32)
        disk = ArrivingDisk(disk=guest.disks[0], volume="raw", location="/x", export="file:/x")
        arrival = await host.arrive(guest, [disk], stream_pair()[1])
        await arrival.abort()
        assert [path.name for path in console.parent.iterdir()] == ["console.log"]
        assert console.read_bytes() == b"x" * 32


class TestGuest:
    @pytest.fixture
    def folder(self, host, tmp_path):
        made = launch(host.options.state, definition(tmp_path, workload=Workload(write_rate=50)))
        yield made
        made.kill()

    async def test_guest_is_described(self, host, folder):
        guest = await host.describe("one")
        assert guest.disks == (folder.definition().disks[0].disk,)
        assert msgspec.json.decode(guest.config)["workload"]["write_rate"] == 50
        assert not await host.check_departure(guest)

    async def test_dead_guest_is_not_there(self, host, folder):
        guest = await host.describe("one")
        folder.kill()
        assert folder.pid() is None
        assert list(await host.guests()) == []
        assert [found.code for found in await host.check_departure(guest)] == ["guest-gone"]
        with pytest.raises(GuestNotFound, match="no guest is running"):
            await host.depart(guest, stream_pair()[0])
        with pytest.raises(GuestStopped):
            await call(folder.path, Command("status"), 60)

    async def test_commands(self, folder):
        for word, state in [
            ("status", "running"),
            ("suspend", "suspended"),
            ("suspend", "suspended"),
            ("resume", "running"),
            ("resume", "running"),
            ("quiesce", "running"),
        ]:
            assert (await call(folder.path, Command(word), 60)).state == state
        with pytest.raises(HypervisorError, match="no command 'dance'"):
            await call(folder.path, Command("dance"), 60)
        with pytest.raises(HypervisorError, match="there are: disk0"):
            await call(folder.path, Command("pivot", disk="disk1", url="file:/x"), 60)
        with pytest.raises(HypervisorError, match="No such file"):
            await call(folder.path, Command("pivot", disk="disk0", url="file:/no/x"), 60)

    async def test_quiesced_it_leaves_its_memory_alone_and_may_be_killed(self, folder):
        await call(folder.path, Command("quiesce"), 60)
        before = (folder.path / "memory").read_bytes()
        await asyncio.sleep(0.1)
        assert (folder.path / "memory").read_bytes() == before

    async def test_refused_pivot_leaves_the_disk_in_use(self, folder):
        with pytest.raises(HypervisorError):
            await call(folder.path, Command("pivot", disk="disk0", url="file:/no/x"), 60)
        start = folder.registers().writes
        async with asyncio.timeout(120):
            while folder.registers().writes < start + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def test_nonsense_on_the_control_socket_does_no_harm(self, folder):
        reader, writer = await asyncio.open_unix_connection(str(folder.path / "control.sock"))
        writer.write(b"\xff\xfe\n{}\n[1]\n")
        for _ in range(3):
            assert b'"error":"' in await reader.readline()
        writer.write(b"x" * 100_000)
        assert await reader.read() == b""
        writer.close()
        assert (await call(folder.path, Command("status"), 60)).state == "running"

    async def test_quit_ends_the_process(self, folder):
        await call(folder.path, Command("quit"), 60)
        async with asyncio.timeout(60):
            while folder.pid() is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        events = read_console(folder.console)["kind"].tolist()
        assert Event.STARTED in events
        assert events[-1] == Event.SUSPENDED


def test_guest_that_cannot_start_leaves_nothing(tmp_path):
    state = tmp_path / "state"
    with pytest.raises(HypervisorError, match="No such file"):
        launch(state, definition(tmp_path, url="file:/no/such/disk"))
    assert not list(state.iterdir())


def test_taken_name_is_refused(tmp_path):
    state = tmp_path / "state"
    GuestFolder(state, "one").define(definition(tmp_path))
    before = sorted(state.rglob("*"))
    with pytest.raises(HypervisorError, match="exists"):
        launch(state, GuestFolder(state, "one").definition())
    assert sorted(state.rglob("*")) == before


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "x" * 65])
def test_names_are_safe(tmp_path, name):
    with pytest.raises(InputError):
        GuestFolder(tmp_path, name)


@pytest.mark.parametrize("text", [b"{", b'{"name": "\xff"}'])
def test_broken_definition_is_named(tmp_path, text):
    folder = GuestFolder(tmp_path, "one")
    folder.path.mkdir()
    (folder.path / "guest.json").write_bytes(text)
    with pytest.raises(HypervisorError, match=r"guest\.json"):
        folder.definition()


class TestConsole:
    def test_entries_come_back(self, tmp_path):
        console = Console(tmp_path / "console")
        console.add(Kind.WRITE, 1, 7, 2**40, 3)
        assert len(read_console(tmp_path / "console")) == 0
        console.flush()
        console.add(Event.RESUMED, 0, 0, 0, 12)
        console.flush()
        entries = read_console(tmp_path / "console")
        assert entries[["kind", "disk", "sequence", "unit", "count"]].tolist() == [
            (0, 1, 7, 2**40, 3),
            (130, 0, 0, 0, 12),
        ]
        with open(tmp_path / "console", "ab") as file:
            file.write(b"cut short")
        assert len(read_console(tmp_path / "console")) == 2
        os.close(console._file)

    def test_two_hosts_are_joined_by_sequence(self, tmp_path):
        first, second = Console(tmp_path / "a"), Console(tmp_path / "b")
        second.add(Kind.ZERO, 0, 12, 3, 2)
        first.add(Kind.WRITE, 0, 11, 2, 4)
        first.add(Kind.WRITE, 1, 13, 0, 8)
        first.add(Event.SUSPENDED, 0, 0, 0, 0)
        for console in (first, second):
            console.flush()
            os.close(console._file)
        entries = logged_entries([tmp_path / "b", tmp_path / "a", tmp_path / "none"], 0, 8)
        zeroed, written = entry(Kind.ZERO, 12), entry(Kind.WRITE, 11)
        assert entries.tolist() == [0, 0, written, zeroed, zeroed, written, 0, 0]


def test_random_places():
    for pattern in ("sequential", "random", "hotspot"):
        random = Splitmix(7)
        places = np.array([random.place(pattern, k, 100) for k in range(5000)])
        assert set(places.tolist()) == set(range(100))
        assert ((places < 10).mean() > 0.8) == (pattern == "hotspot")
    assert Splitmix(7).below(100) == Splitmix(7).below(100) != Splitmix(8).below(100)


async def test_bad_read_is_counted_and_described(host, tmp_path):
    made = definition(tmp_path, workload=Workload(read_ratio=0.9, working_set=65536, write_rate=0))
    folder = launch(host.options.state, made)
    try:
        async with asyncio.timeout(120):
            while not folder.registers().bad_reads:
                with (tmp_path / "one.raw").open("r+b") as disk:
                    disk.write(b"\x55" * MIB)
                await asyncio.sleep(0.02)
    finally:
        folder.kill()
    assert "bad read: disk 0 unit" in (folder.path / "guest.log").read_text()
