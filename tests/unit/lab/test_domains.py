"""Guests on a host, which is asked by commands alone: here it answers what it is told to."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import pytest

from vmferry_lab.domains import Domains
from vmferry_lab.errors import LabError

REPORT = (
    'REPORT {"writes": 1, "reads": 0, "flushes": 0, "discards": 0, "discards_refused": 0, '
    '"errors": 0, "bad": 0, "gap": 0, "gap_running": 0, "slowest": 0, "uptime": 12.5, "running": 9}'
)
FIRST = 'FIO {"pass": 1, "uptime": 20.5, "code": null, "error": 0, "writes": 3}'
LAST = 'FIO {"pass": 1, "uptime": 22.5, "code": 0, "error": 0, "writes": 9}'


class Host:
    name = "hosta"

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.given: list[bytes] = []

    def run(self, command: Any, *, stdin: bytes = b"", timeout: float = 600) -> str:
        line = command if isinstance(command, str) else " ".join(command)
        self.asked.append(line)
        self.given.append(stdin)
        return self.answer(line)


def domains(answer: Callable[[str], str]) -> Domains:
    return Domains(Host(answer))  # type: ignore[arg-type]


def test_fios_reports_are_read_and_a_line_that_was_cut_is_not() -> None:
    console = f'{REPORT}\n{FIRST}\nFIO {{"pass": 1, "upt\nFIO-SAID verify\n{LAST}\nFIO {{}}\n'
    found = domains(lambda line: console).fio("web")
    assert [(one.number, one.uptime, one.code, one.writes) for one in found] == [
        (1, 20.5, None, 3),
        (1, 22.5, 0, 9),
    ]


def test_the_end_of_the_pass_under_way_is_waited_for() -> None:
    def answer(line: str) -> str:
        if line.startswith("cat"):
            return FIRST
        return LAST if '"code": [0-9]' in line else FIRST

    asked = domains(answer)
    assert asked.fio_pass("web").code == 0


def test_a_guests_clock_is_told_by_its_hosts() -> None:
    assert domains(lambda line: f"{REPORT}\n1000.25\n").booted("web") == 987.75


def test_a_guest_with_fio_has_all_in_one_initrd() -> None:
    host = Host(lambda line: "yes" if "test -e" in line else LAST)
    Domains(host).start("web", ["/dev/x", "/dev/y"], fio="[one]\n", seed=7)  # type: ignore[arg-type]
    (place,) = [at for at, line in enumerate(host.asked) if "web.initrd" in line]
    assert "cat /srv/guest/initrd.img /srv/guest/fio.img - >" in host.asked[place]
    job = gzip.decompress(host.given[place])
    assert b"/dev/xvda 7 16\n" in job
    assert b"[one]\n" in job
    (config,) = [given.decode() for given in host.given if b"cmdline" in given]
    assert 'ramdisk = "/srv/disks/web.initrd"' in config
    assert "writer.disks=xvdb" in config
    assert "fio" not in config.partition("cmdline")[2]


def test_a_job_that_fio_does_not_begin_is_an_error_at_once_with_its_words() -> None:
    def answer(line: str) -> str:
        if "FIO-SAID" in line:
            return "fio: failed to open it"
        return "yes" if "test -e" in line else LAST.replace('"code": 0', '"code": 1')

    with pytest.raises(LabError, match="failed to open it"):
        domains(answer).start("web", ["/dev/x", "/dev/y"], fio="[one]\n")


def test_a_laboratory_without_fio_says_how_to_have_it() -> None:
    with pytest.raises(LabError, match="up --with fio"):
        domains(lambda line: "").start("web", ["/dev/x", "/dev/y"], fio="[one]\n")
