"""A job file of fio is taken as it is, or refused before any guest is started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pretending import Describe

from vmferry.errors import InputError
from vmferry.experiments import fiojobs
from vmferry.experiments.backends import backend_names
from vmferry.experiments.fiojobs import job_notes, read_job
from vmferry.experiments.matrix import make_cells

JOB = """\
; comments, and every way to write a section
[global]
ioengine=libaio
filename=/dev/xvda
direct=1
verify=crc32c

[ one ]
rw=randwrite
size=4m
group_reporting
"""
EXPERIMENT = "[matrix]\nhypervisor = {}\nworkload = 'mine'\n[workload.mine]\nfio = 'jobs.fio'\n"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.fio"
    path.write_text(JOB)
    return path


def test_a_job_is_read_word_by_word(job: Path) -> None:
    assert read_job(job) == JOB
    assert job_notes(JOB) == ()


def test_what_a_job_does_not_compare_is_said() -> None:
    assert "no `verify`" in job_notes("[a]\nverify=0\n")[0]
    assert "lost write" in job_notes("[a]\nverify=pattern\nverify_pattern=7\n")[0]
    assert "memory" in job_notes("[a]\nverify=md5\nbuffered=1\n")[0]


WRONG = {
    "rw=read\n": "line 1: 'rw' is in no",
    "[global]\nrw=read\n": "no job in it",
    "": "no job in it",
    "[a]\nfilename=/dev/xvdb\n": "'/dev/xvdb' is not the guest's disk",
    "[a]\nfilename=/dev/vdb\n": "line 2: .*leave it out, or /dev/vda or /dev/xvda",
    "[a]\nfilename = /dev/xvda:/dev/vda\n": "not the guest's disk",
    "[a]\nFILENAME=/etc/passwd\n": "not the guest's disk",
    "[a]\ndirectory=/tmp\n": "line 2: .*directory.*use of files",
    "[a]\ninclude other.fio\n": "include wants another file",
    "[a]\nexec_prerun=reboot\n": "another program",
    "[a]\nverify=md5\ncontinue_on_error=verify\n": "hide what was lost",
    "[a]\nverify=md5\nverify_offset=64\n": "line 3: .*tells a pass from the one before",
    "[a]\nwrite_bw_log=here\n": "writes a file",
    "[a]\nioengine=rbd\n": "'rbd'.*there are: io_uring",
    "[a]\nioengine=libiao\n": "did you mean 'libaio'",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_reaches_beyond_the_disk_is_refused_with_its_line(job: Path, text: str) -> None:
    job.write_text(text)
    with pytest.raises(InputError, match=WRONG[text]) as refused:
        read_job(job)
    assert str(job) in str(refused.value)


def test_a_job_that_is_not_there_too_long_or_no_text_is_named(job: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.fio"):
        read_job(job.with_name("nowhere.fio"))
    job.write_text("[a]\n" + ";" * (64 << 10))
    with pytest.raises(InputError, match="larger than 65536"):
        read_job(job)
    job.write_bytes(b"[a]\n\xff")
    with pytest.raises(InputError, match="UTF-8"):
        read_job(job)


def _stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "fio"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(fiojobs.shutil, "which", lambda name: str(program))


def test_what_fio_says_against_it_is_quoted(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(job.parent, monkeypatch, 'echo "Bad option $1" >&2; exit 1')
    with pytest.raises(InputError, match="Bad option --parse-only"):
        read_job(job)
    monkeypatch.setattr(fiojobs, "_PATIENCE", 0.1)
    _stand_in(job.parent, monkeypatch, "exec sleep 10")
    with pytest.raises(InputError, match="more than"):
        read_job(job)


def test_without_fio_it_is_read_all_the_same(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fiojobs.shutil, "which", lambda name: None)
    assert read_job(job) == JOB


@pytest.mark.real
@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_fio_knows_its_options(job: Path) -> None:
    assert read_job(job) == JOB
    job.write_text("[a]\nrww=read\n")
    with pytest.raises(InputError, match="rww"):
        read_job(job)


@pytest.mark.usefixtures("job")
def test_a_workload_is_a_job_file_beside_the_experiment(describe: Describe) -> None:
    (cell,) = make_cells(describe(EXPERIMENT.format("'xen'")))
    assert cell.spec.load.fio == JOB
    assert not cell.spec.load.idle
    assert cell.shown["workload"] == "mine"


def test_another_job_is_another_cell(describe: Describe, job: Path) -> None:
    (first,) = make_cells(describe(EXPERIMENT.format("'xen'")))
    job.write_text(JOB + "bs=8k\n")
    (second,) = make_cells(describe(EXPERIMENT.format("'xen'")))
    assert first.spec.cell != second.spec.cell


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("name", sorted(set(backend_names()) - {"qemu", "xen"}))
def test_guests_that_run_no_programs_refuse_it(describe: Describe, name: str) -> None:
    with pytest.raises(InputError, match=f"'qemu' and 'xen' have .*not '{name}'"):
        make_cells(describe(EXPERIMENT.format(f"'{name}'")))


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("write_rate = 3", "'write_rate' does not go with fio"),
        ("based_on = 'web'", "'based_on' does not go with fio"),
        ("fioo = 'jobs.fio'", "did you mean 'fio'"),
        ("[workload.other]\nbased_on = 'mine'\nspan = 0.5", "'span' does not go with fio"),
    ],
)
def test_it_is_all_that_the_guest_does(describe: Describe, more: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        describe(EXPERIMENT.format("'xen'") + more)


def test_a_path_is_text(describe: Describe) -> None:
    with pytest.raises(InputError, match="3 is not the path"):
        describe("[matrix]\n[workload.a]\nfio = 3\n")
