"""The guest's program, its record and the checker: each fault is found."""

import shutil
import struct
import subprocess
from importlib import resources

import numpy as np
import pytest

from vmferry.errors import InputError
from vmferry_hypervisors.qemu.workload import program as code
from vmferry_hypervisors.qemu.workload.checker import Memory, check_guest, expected
from vmferry_hypervisors.qemu.workload.image import make_disk
from vmferry_hypervisors.qemu.workload.program import Program, State, image, operations
from vmferry_hypervisors.qemu.workload.record import Record
from vmferry_hypervisors.qemu.workload.recorder import Happened
from vmferry_hypervisors.qemu.workload.trial_options import QemuTrialOptions, make_program

MIB = 1 << 20
PROGRAM = Program(
    sectors=2048,
    blocks=200,
    filled=600,
    disks=2,
    reads=60,
    parts=120,
    touch=(4 * MIB, 5 * MIB),
    noise=6 * MIB,
    table=2 * MIB,
)
DONE = 300


@pytest.mark.real
@pytest.mark.skipif(shutil.which("nasm") is None, reason="nasm is not installed")
def test_the_bytes_are_those_of_the_source(tmp_path):
    source = resources.files(code.__package__).joinpath("guest.asm")
    with resources.as_file(source) as path:
        subprocess.run(["nasm", "-f", "bin", "-o", tmp_path / "bin", path], check=True)
    assert (tmp_path / "bin").read_bytes() == image()


def test_parameters_are_where_the_program_has_them():
    patched = PROGRAM.patch(image())
    assert len(patched) == code.SIZE
    assert patched[510:512] == b"\x55\xaa"
    assert struct.unpack_from("<I", patched, 0x10)[0] == 200
    assert struct.unpack_from("<BBBB", patched, 0x18) == (2, 60, 120, 0)
    assert struct.unpack_from("<II", patched, 0x30) == (2 * MIB, 2048)
    changed = [at for at in range(code.SIZE) if patched[at] != image()[at]]
    assert all(4 <= at < 0x38 for at in changed)


def test_operations_follow_from_the_seed():
    """Against the arithmetic of the program's source, one by one."""
    x = (PROGRAM.seed + 2 * 0x9E3779B9) & 0xFFFFFFFF
    some = operations(PROGRAM, 2, 50)
    for number in range(50):
        drawn = []
        for _ in range(3):
            x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
            drawn.append(x)
        a, b, c = drawn
        first, length = (2 + (a * 200 >> 32)) * 8, 8
        if (c >> 16) & 255 < 120:
            first, length = first + (b >> 29), min(1 + (b >> 26 & 7), 8 - (b >> 29))
        assert some.first[number] == first
        assert some.length[number] == length
        assert some.disk[number] == ((b >> 10) & 255) * 2 >> 8
        assert some.write[number] == (c >> 24 >= 60)


class Stage:
    """Two disks and a record as a guest would leave them after ``DONE`` operations."""

    def __init__(self, folder):
        self.disks = [folder / "disk0", folder / "disk1"]
        self.file = folder / "record"
        self._frames = 0
        for number, path in enumerate(self.disks):
            make_disk(path, number, PROGRAM)
        some = operations(PROGRAM, 0, DONE)
        self.say(b"S00000000\n")
        for number in range(1, DONE + 1):
            at = number - 1
            if some.write[at]:
                self.write(number, some.disk[at], some.first[at], some.length[at])
            letter = b"W" if some.write[at] else b"R"
            self.say(b"%c%08X\n." % (letter, number))
        self.poke(0, 8 * 512 + 4, struct.pack("<I", 1))
        self.last_write = int(np.flatnonzero(some.write)[-1])
        self.some = some

    def write(self, number, disk, first, length):
        for sector in range(first, first + length):
            self.poke(disk, sector * 512, struct.pack("<II", number, sector | int(disk) << 28) * 64)

    def poke(self, disk, offset, data):
        with open(self.disks[disk], "r+b") as file:
            file.seek(int(offset))
            file.write(data)

    def say(self, data, connection=0, time=None):
        self._frames += 1
        when = self._frames / 1000 if time is None else time
        with open(self.file, "ab") as file:
            file.write(struct.pack("<dIII", when, connection, Happened.SPOKE, len(data)) + data)

    def check(self, memory=None):
        return check_guest(PROGRAM, Record(self.file), self.disks, memory)

    def memory(self):
        record = Record(self.file)
        record.update()
        pages = (PROGRAM.touch[1] - PROGRAM.touch[0]) // 4096
        addresses = np.arange(PROGRAM.touch[1], PROGRAM.noise, 4, dtype=np.uint64)
        return Memory(
            state=State(DONE, 0, 0, 0, 0, 0, pages + 3, 0, 0),
            table=expected(PROGRAM, record).must.astype(np.uint32),
            touched=np.array([2] * 3 + [1] * (pages - 3), dtype=np.uint32),
            noise=(addresses * 2654435761 & 0xFFFFFFFF).astype(np.uint32),
        )


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def last(stage):
    """Disk and first sector of the last write."""
    return int(stage.some.disk[stage.last_write]), int(stage.some.first[stage.last_write])


class TestChecker:
    def test_what_is_right_is_good(self, stage):
        verdict = stage.check(stage.memory())
        assert verdict.good, verdict
        assert verdict.acknowledged == int(np.count_nonzero(stage.some.write))
        assert verdict.checked == 2 * (2048 - 16)

    def test_a_lost_sector(self, stage):
        disk, sector = last(stage)
        stage.poke(disk, sector * 512, struct.pack("<II", 0, sector | disk << 28) * 64)
        verdict = stage.check()
        assert (verdict.lost, verdict.wrong) == (1, 0)

    def test_a_zeroed_sector(self, stage):
        disk, sector = last(stage)
        stage.poke(disk, sector * 512, bytes(512))
        assert (stage.check().lost, stage.check().wrong) == (1, 0)

    def test_a_flipped_bit(self, stage):
        disk, sector = last(stage)
        stage.poke(disk, sector * 512 + 100, b"\xff")
        assert (stage.check().lost, stage.check().wrong) == (0, 1)

    def test_a_sector_of_the_other_disk(self, stage):
        disk, sector = last(stage)
        number = stage.last_write + 1
        stage.poke(disk, sector * 512, struct.pack("<II", number, sector | (1 - disk) << 28) * 64)
        assert (stage.check().lost, stage.check().wrong) == (0, 1)

    def test_a_place_that_was_never_written(self, stage):
        stage.poke(0, 2047 * 512, b"\x01")
        assert stage.check().wrong == 1

    def test_a_write_that_nobody_acknowledged_yet_may_be_there(self, stage):
        some = operations(PROGRAM, 0, DONE + 1)
        assert some.write[DONE]
        args = some.disk[DONE], some.first[DONE], some.length[DONE]
        stage.write(DONE + 1, *args)
        assert stage.check().good

    def test_a_write_from_the_future_may_not(self, stage):
        some = operations(PROGRAM, 0, DONE + 40)
        later = next(at for at in range(DONE + 1, DONE + 40) if some.write[at])
        stage.write(later + 1, some.disk[later], some.first[later], some.length[later])
        assert stage.check().wrong > 0

    @pytest.mark.parametrize("repeated", [b"W%08X\n" % DONE, b"W%08X\n" % (DONE + 2)])
    def test_an_operation_twice_or_left_out(self, stage, repeated):
        """A guest that runs twice, or goes back in time."""
        stage.say(repeated, connection=1)
        assert stage.check().wrong == 1

    def test_a_bad_read(self, stage):
        stage.say(b"X%08X\n" % (DONE + 1))
        assert stage.check().bad_reads == 1

    def test_a_reboot_cuts_an_operation_short(self, stage):
        stage.say(b"W0000S00000001\n")
        some = operations(PROGRAM, 1, 1)
        letter = b"W" if some.write[0] else b"R"
        if some.write[0]:
            stage.write(1 << 24 | 1, some.disk[0], some.first[0], some.length[0])
        stage.say(b"%c01000001\n" % letter)
        stage.poke(0, 8 * 512 + 4, struct.pack("<I", 2))
        assert stage.check().good

    def test_a_lost_boot(self, stage):
        stage.say(b"S00000001\n")
        stage.poke(0, 8 * 512 + 4, struct.pack("<I", 0))
        assert stage.check().lost == 1

    @pytest.mark.parametrize("part", ["table", "touched", "noise"])
    def test_bad_memory(self, stage, part):
        memory = stage.memory()
        getattr(memory, part)[5] ^= 1 << 30
        assert stage.check(memory).bad_memory == 1


class TestRecord:
    def test_the_gap_at_a_switch(self, stage):
        stage.say(b"..", time=10.0)
        stage.say(b".", connection=1, time=10.25)
        record = Record(stage.file)
        record.update()
        assert record.switches == [0.25]
        assert record.ticks == DONE + 3

    def test_half_a_frame_is_taken_later(self, stage):
        whole = stage.file.read_bytes()
        record = Record(stage.file)
        stage.file.write_bytes(whole[:-3])
        record.update()
        stage.file.write_bytes(whole)
        record.update()
        assert record.spoken().boots[0].last == DONE
        assert record.spoken().faults == ()

    def test_no_file_is_no_word(self, tmp_path):
        record = Record(tmp_path / "none")
        record.update()
        assert record.spoken() == ((), ())


class TestOptions:
    def test_rates_and_shares(self):
        program = make_program(QemuTrialOptions(write_rate=250, read_ratio=0.5), 64 * MIB)
        assert abs(program.rate - 65536) < 100
        assert program.reads == 128
        assert not program.full_speed

    def test_full_speed_and_idle(self):
        assert make_program(QemuTrialOptions(write_rate=0), 64 * MIB).full_speed
        idle = make_program(QemuTrialOptions(idle=True), 64 * MIB)
        assert (idle.rate, idle.full_speed) == (0, False)

    @pytest.mark.parametrize("size", [1000, 4096, 4096 * 20 + 512])
    def test_sizes_that_cannot_be(self, size):
        with pytest.raises(InputError, match="4 KiB"):
            make_program(QemuTrialOptions(), size)

    def test_too_little_memory(self):
        with pytest.raises(InputError, match="memory"):
            make_program(QemuTrialOptions(memory=16 * MIB), 1 << 30)
