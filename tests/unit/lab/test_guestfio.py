"""What a guest needs to run fio: with this machine's fio, and without any guest."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vmferry_lab.errors import CommandFailed
from vmferry_lab.guestfio import build_fio, job_initrd, places, stand_in
from vmferry_lab.guestimage import GUEST
from vmferry_lab.image import FIO_LIBRARIES, Image

AWK = GUEST / "fio/condense.awk"
HERE = Path("/usr/lib/x86_64-linux-gnu")
PROGRAM = Path(shutil.which("fio") or "/usr/bin/fio")
there = pytest.mark.skipif(
    not (PROGRAM.exists() and all((HERE / name).exists() for name in FIO_LIBRARIES)),
    reason="fio is not installed",
)


def _image(folder: Path) -> Image:
    image = Image(folder / "image-1")
    image.folder.mkdir()
    shutil.copy(PROGRAM, image.part("fio"))
    for name in FIO_LIBRARIES:
        shutil.copy(HERE / name, image.part(name))
    return image


def test_an_image_without_fio_has_none_for_its_guests(tmp_path: Path) -> None:
    image = Image(tmp_path / "image-1")
    image.folder.mkdir()
    assert build_fio(tmp_path, image) is None


@there
def test_what_is_no_block_device_is_left_out(tmp_path: Path) -> None:
    image = _image(tmp_path)
    packed = build_fio(tmp_path, image)
    assert packed is not None
    archive = gzip.decompress(packed.read_bytes())
    assert len(archive) < 12 << 20
    for name in (b"lib/x86_64-linux-gnu/librbd.so.1\0", b"fio/run\0", b"fio/condense.awk\0"):
        assert name in archive
    assert build_fio(tmp_path, image) == packed
    assert not (tmp_path / "stand-in.building").exists()


def test_what_a_job_calls_the_disk_is_left_out_since_fio_would_take_it_for_another() -> None:
    text = "[one]\nfilename=/dev/vda\n  filename = /dev/xvda\nrw=write\n;filename\nfilename_x=1\n"
    archive = gzip.decompress(job_initrd(text, "/dev/vda", 1))
    assert b"[one]\n\n\nrw=write\n;filename\nfilename_x=1\n" in archive


@there
def test_fio_runs_with_libraries_that_stand_for_others(tmp_path: Path) -> None:
    image = _image(tmp_path)
    parts = [image.part(name) for name in FIO_LIBRARIES]
    library, names = stand_in(image.part("fio"), parts, tmp_path / "scratch")
    assert names
    for name in names:
        image.part(name).write_bytes(library)
    loader = [str(image.part("ld-linux-x86-64.so.2")), "--inhibit-cache", "--library-path"]
    job = ["--name=a", "--ioengine=libaio", "--rw=randrw", "--size=64k", "--verify=crc32c"]
    done = subprocess.run(
        [*loader, str(image.folder), str(image.part("fio")), *job, f"--filename={tmp_path}/disk"],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={},
        text=True,
    )
    assert done.stderr == "", "a version is missing"
    mapped = subprocess.run(
        [*loader, str(image.folder), "--list", str(image.part("fio"))],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={},
        text=True,
    )
    assert "/lib/" not in mapped.stdout.replace(str(tmp_path), "")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "fio").write_bytes(b"no program")
    with pytest.raises(CommandFailed, match="nm"):
        stand_in(tmp_path / "fio", [], tmp_path / "scratch")


def test_a_job_goes_behind_it_with_its_disk_and_seed() -> None:
    archive = gzip.decompress(job_initrd("[one]\nrw=read\n", "/dev/xvda", 7))
    assert b"[one]\nrw=read\n" in archive
    assert b"/dev/xvda 7 16\n" in archive


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("rw=write", 16),
        ("bs=64k", 16),
        ("bs=2KiB", 8),
        ("bsrange=512-4k", 2),
        ("bssplit=4k/10:1k/90,8k/100", 4),
        ("blocksize = 1024", 4),
        ("verify_interval=512", 2),
        ("bs=(4*1024)", 2),
        ("verify_interval=64", 2),
    ],
)
def test_a_small_block_has_fewer_places_for_checksums(line: str, found: int) -> None:
    assert places(f"[one]\n{line}\n") == found


STALE = """\
#!/bin/sh
case $(cat {0}/passes) in
1) {1} "$@"; code=$?; cp {0}/disk {0}/old;;
11) (sleep 0.7; dd if={0}/old of={0}/disk conv=notrunc status=none) & {1} "$@"; code=$?;;
*) code=9;;
esac
printf 1 >> {0}/passes
exit $code
"""


@pytest.mark.real
@there
@pytest.mark.parametrize("rw", ["write", "randwrite"])
def test_a_block_of_the_pass_before_does_not_do_for_one_that_was_lost(
    tmp_path: Path, rw: str
) -> None:
    job = f"[one]\nrw={rw}\nbs=4k\nsize=64k\nrate_iops=16\nverify=crc32c\n"
    (tmp_path / "jobs.fio").write_text(job)
    (tmp_path / "disk").write_bytes(bytes(64 << 10))
    (tmp_path / "options").write_text(f"{tmp_path}/disk 7 {places(job)}\n")
    (tmp_path / "passes").write_text("1")
    wrapped = tmp_path / "bin/fio"
    wrapped.parent.mkdir()
    wrapped.write_text(STALE.format(tmp_path, PROGRAM))
    wrapped.chmod(0o755)
    script = (GUEST / "fio/run").read_text().replace("awk -f /fio/condense.awk", "cat")
    script = script.replace("/fio/", f"{tmp_path}/").replace("cd /tmp", f"cd {tmp_path}")
    script = script.replace("[ -b", "[ -e")
    path = f"{wrapped.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("CODE ")]
    assert codes == ["CODE 0", "CODE 1"], done.stdout
    assert "verify: bad" in done.stdout


def _condensed(text: str) -> list[str]:
    done = subprocess.run(
        ["awk", "-f", str(AWK)], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def _said(line: str) -> dict[str, object]:
    assert line.startswith("FIO {")
    found: dict[str, object] = json.loads(line[4:])
    return found


def _section(name: str, count: int, mean: float) -> str:
    return (
        f'      "{name}" : {{\n'
        f'        "io_bytes" : {count * 4096},\n        "total_ios" : {count},\n'
        '        "clat_ns" : {\n          "mean" : 7.0,\n          "N" : 1000,\n'
        '          "percentile" : {\n            "1.000000" : 5\n          }\n        },\n'
        f'        "lat_ns" : {{\n          "mean" : {mean},\n          "N" : {count}\n        }}\n'
        "      },\n"
    )


def _job(error: int, reads: int, writes: int) -> str:
    return (
        f'    {{\n      "jobname" : "a",\n      "error" : {error},\n'
        + _section("read", reads, 2e6)
        + _section("write", writes, 1e6)
        + _section("trim", 5, 1e9)
        + "    },\n"
    )


def _report(*jobs: str) -> str:
    return '{\n  "jobs" : [\n' + "".join(jobs) + "  ]\n}\n"


def test_fios_reports_become_lines_summed_over_its_jobs() -> None:
    first, last = _condensed(
        "PASS 3\n" + _report(_job(0, 10, 20), _job(0, 5, 0)) + "CODE 0\n",
    )
    said = _said(first)
    assert (said["pass"], said["code"], said["error"]) == (3, None, 0)
    assert (said["reads"], said["read_bytes"], said["read_seconds"]) == (15, 15 * 4096, 0.03)
    assert (said["writes"], said["written_bytes"], said["write_seconds"]) == (20, 20 * 4096, 0.02)
    assert said["uptime"]
    assert {**said, "code": 0} == {**_said(last), "uptime": said["uptime"]}


def test_a_later_report_of_a_pass_replaces_the_one_before() -> None:
    lines = _condensed("PASS 1\n" + _report(_job(0, 1, 2)) + _report(_job(0, 3, 4)))
    assert [(_said(line)["reads"], _said(line)["writes"]) for line in lines] == [(1, 2), (3, 4)]


def test_an_error_of_any_job_and_what_fio_says_of_it_are_passed_on() -> None:
    text = "PASS 1\nverify: bad magic header 0\n" + _report(_job(84, 1, 1), _job(0, 1, 1))
    words, report, last = _condensed(text + "CODE 1\n")
    assert words == "FIO-SAID verify: bad magic header 0"
    assert _said(report)["error"] == 84
    assert (_said(last)["error"], _said(last)["code"]) == (84, 1)


def test_a_pass_that_reports_nothing_has_no_figures_of_the_one_before() -> None:
    *_, last = _condensed("PASS 1\n" + _report(_job(0, 9, 9)) + "CODE 0\nPASS 2\nCODE 1\n")
    assert (_said(last)["pass"], _said(last)["writes"]) == (2, 0)


def test_fio_that_says_much_does_not_fill_the_console() -> None:
    assert len(_condensed("PASS 1\n" + "verify: bad\n" * 1000)) == 10


@pytest.mark.real
@there
def test_a_real_fio_is_understood(tmp_path: Path) -> None:
    job = ["--name=a", "--rw=randrw", "--size=256k", f"--filename={tmp_path}/disk"]
    argv = [str(PROGRAM), "--output-format=json", "--verify=crc32c", *job]
    text = subprocess.run(argv, capture_output=True, check=True, cwd=tmp_path, text=True).stdout
    (line,) = _condensed("PASS 1\n" + text)
    (found,) = json.loads(text)["jobs"]
    for kind, plural in (("read", "reads"), ("write", "writes")):
        assert _said(line)[plural] == found[kind]["total_ios"] > 0
        exact = found[kind]["lat_ns"]["mean"] * found[kind]["lat_ns"]["N"] / 1e9
        assert _said(line)[f"{kind}_seconds"] == pytest.approx(exact, abs=1e-6)
