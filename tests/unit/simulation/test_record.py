import random

import numpy as np
import pytest

from vmferry.simulation import stamps
from vmferry.simulation.record import DiskRecord, Record
from vmferry.simulation.stamps import FOREIGN
from vmferry.simulation.table import Kind


def fresh(sectors=8, disks=1):
    return Record([DiskRecord(sectors) for _ in range(disks)])


def contents(*numbers):
    return np.array(numbers, np.int32)


def write(record, first, count=1, kind=Kind.WRITE):
    number = record.submit(kind, 0, first, count)
    record.acknowledge(number)
    return number


def kinds(complaints):
    return [complaint.kind for complaint in complaints]


def test_stamps_tell_place_number_and_damage():
    data = bytearray(stamps.encode(1, 5, 4, 77, 512))
    assert stamps.decode(memoryview(data), 1, 5, 512).tolist() == [77] * 4
    assert stamps.decode(memoryview(data), 0, 5, 512).tolist() == [FOREIGN] * 4
    assert stamps.decode(memoryview(data), 1, 6, 512).tolist() == [FOREIGN] * 4
    data[512:1024] = bytes(512)
    data[1030] ^= 1
    data[1536 + 256 : 2048] = stamps.encode(1, 8, 1, 78, 512)[256:]
    assert stamps.decode(memoryview(data), 1, 5, 512).tolist() == [77, 0, FOREIGN, FOREIGN]


def test_the_last_write_acknowledged_is_the_only_one_allowed():
    record = fresh(2)
    old, new = write(record, 0), write(record, 0)
    assert not record.check(0, contents(new, 0))
    assert kinds(record.check(0, contents(old, 0))) == ["lost"]
    assert kinds(record.check(0, contents(0, 0))) == ["lost"]
    assert kinds(record.check(0, contents(FOREIGN, 0))) == ["wrong"]
    assert kinds(record.check(0, contents(new, new))) == ["lost"]


def test_overlapping_writes_may_be_done_in_either_order():
    record = fresh(1)
    base = write(record, 0)
    a = record.submit(Kind.WRITE, 0, 0, 1)
    b = record.submit(Kind.WRITE, 0, 0, 1)
    for seen in (base, a, b):
        assert not record.check(0, contents(seen))
    record.acknowledge(b)
    assert kinds(record.check(0, contents(base))) == ["lost"]
    record.acknowledge(a)
    assert not record.check(0, contents(a))
    assert not record.check(0, contents(b))


def test_what_a_quiet_read_saw_must_stay():
    record = fresh(1)
    a, b = (record.submit(Kind.WRITE, 0, 0, 1) for _ in range(2))
    record.acknowledge(a)
    record.acknowledge(b)
    assert not record.end_read(record.begin_read(0, 0, 1), contents(a))
    assert not record.check(0, contents(a))
    assert kinds(record.check(0, contents(b))) == ["changed"]
    assert kinds(record.end_read(record.begin_read(0, 0, 1), contents(b))) == ["changed"]


def test_reads_are_judged_by_what_was_known_when_they_began():
    record = fresh(1)
    old = write(record, 0)
    start = record.begin_read(0, 0, 1)
    new = write(record, 0)
    assert not record.end_read(start, contents(old))
    assert not record.end_read(record.begin_read(0, 0, 1), contents(new))
    assert kinds(record.end_read(record.begin_read(0, 0, 1), contents(old))) == ["lost"]


def test_zeroes_and_discards():
    record = fresh(3)
    number = write(record, 0, 3)
    write(record, 0, kind=Kind.ZERO)
    write(record, 1, kind=Kind.DISCARD)
    assert not record.check(0, contents(0, FOREIGN, number))
    assert kinds(record.check(0, contents(number, 0, 0))) == ["lost", "lost"]
    later = write(record, 1)
    assert kinds(record.check(0, contents(0, FOREIGN, number))) == ["wrong"]
    assert not record.check(0, contents(0, later, number))


def test_a_crash_may_take_what_was_not_flushed_and_nothing_else():
    record = fresh(2)
    first = write(record, 0, 2)
    flush = record.begin_flush(0)
    second = write(record, 0)
    record.end_flush(flush)
    for seen in (first, second):
        assert not record.check(0, contents(seen, first), crashed=True)
    assert kinds(record.check(0, contents(0, first), crashed=True)) == ["lost"]
    assert kinds(record.check(0, contents(first, first))) == ["lost"]


def test_it_survives_the_journey():
    record = fresh(8, disks=2)
    for n in range(200):
        write(record, n % 8, kind=random.Random(n).choice([Kind.WRITE, Kind.ZERO]))
    record.begin_flush(1)
    other = Record.load(record.dump())
    assert not record.differences(other)
    write(record, 3)
    assert record.differences(other)
    write(other, 3)
    assert not record.differences(other)
    for twin in (record, other):
        twin.end_flush(next(iter(twin.flushes)))
    assert not record.differences(other)


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_the_definition(seed):
    """Against a slow judgement that goes over every pair of writes."""
    chance, record, writes, open_ones = random.Random(seed), fresh(1), {0: (-1, 0)}, []
    for _ in range(30):
        if open_ones and chance.random() < 0.5:
            number = open_ones.pop(chance.randrange(len(open_ones)))
            record.acknowledge(number)
            writes[number] = (writes[number][0], record.tick)
        else:
            number = record.submit(Kind.WRITE, 0, 0, 1)
            open_ones.append(number)
            writes[number] = (record.tick, float("inf"))
        for seen, (_, acknowledged) in writes.items():
            overwritten = any(
                acknowledged < other and done < float("inf") for other, done in writes.values()
            )
            assert bool(record.check(0, contents(seen))) == overwritten
