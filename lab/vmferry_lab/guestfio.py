"""What a guest needs to run fio, as an initrd that goes behind the guests' own: Debian's fio.

That is linked with libraries of storage that is no block device, and these with 75 MiB of others.
A library whose functions do nothing stands for them: the guest has its disk alone.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from vmferry_lab.commands import run
from vmferry_lab.cpio import Initrd
from vmferry_lab.guestimage import GUEST
from vmferry_lab.image import FIO_LIBRARIES, Image

__all__ = ["JOB_FOLDER", "build_fio", "digest_scripts", "job_initrd", "places", "stand_in"]

JOB_FOLDER = "fio"
"""Where a guest has its job; it runs fio if there is one."""

_FILENAME = re.compile(r"^[ \t]*filename[ \t]*=.*$", re.MULTILINE)
_BLOCKS = ("bs", "blocksize", "bsrange", "blocksize_range", "bssplit", "verify_interval")
"""Options of a job that say how large a block is, or the part of one that has a checksum."""
_BLOCK, _SECTOR = 4096, 512
_APART, _CHECKSUM = 256, 176
"""Bytes between two places for a checksum, and of the largest, with its header."""
_UNITS = {None: 0, "k": 10, "m": 20, "g": 30}
_LIBRARIES = "lib/x86_64-linux-gnu"
_LOADER = "ld-linux-x86-64.so.2"
_SCRIPTS = ("run", "condense.awk")


def build_fio(cache: Path, image: Image) -> Path | None:
    """The initrd that belongs to an image, made if it is new; ``None`` if the image has no fio.

    Raises:
        CommandFailed: the library that stands for others cannot be made.
        Missing: there is no gcc, or no binutils.

    """
    if not image.part("fio").exists():
        return None
    target = cache / f"guest-fio-{digest_scripts(image.folder.name)}.img"
    if not target.exists():
        making = target.with_suffix(".building")
        making.write_bytes(_pack(image, cache / "stand-in.building"))
        making.rename(target)
    return target


def job_initrd(text: str, disk: str, seed: int) -> bytes:
    """The last initrd of a guest that runs a job: its text, the disk, and where randomness starts.

    Args:
        text: the job file. What it calls the disk is left out: fio is told that besides, and would
            take the one disk for two files.
        disk: the device that fio works on.
        seed: the first pass has the next number, and each pass another.

    Each pass has its checksums in another of the places that a block has for them.

    """
    initrd = Initrd()
    initrd.file(f"{JOB_FOLDER}/jobs.fio", _FILENAME.sub("", text).encode())
    initrd.file(f"{JOB_FOLDER}/options", f"{disk} {seed} {places(text)}\n".encode())
    return initrd.packed()


def places(text: str) -> int:
    """In how many places of a job's smallest block fio's checksums may be, 256 bytes apart."""
    least = min([_BLOCK, *(_sizes(line) for line in text.splitlines())])
    return (max(least, _SECTOR) - _CHECKSUM) // _APART + 1


def _sizes(line: str) -> int:
    """The smallest size of a block that a line of a job sets, in bytes."""
    key, _, value = line.partition("=")
    if key.strip() not in _BLOCKS:
        return _BLOCK
    found = [_size(word.partition("/")[0]) for word in re.split(r"[,:-]", value) if word.strip()]
    return min(found, default=_BLOCK)


def _size(word: str) -> int:
    """Of ``4k`` 4096; what is written otherwise is taken for the least that there is."""
    match = re.fullmatch(r"(\d+)(?:([kmg])i?b?)?", word.strip().lower())
    return int(match[1]) << _UNITS[match[2]] if match else _SECTOR


def digest_scripts(seed: str) -> str:
    """Twelve hexadecimal digits that change with ``seed`` and with how fio is packed."""
    digest = hashlib.sha256(seed.encode())
    for path in (*(GUEST / "fio" / name for name in _SCRIPTS), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _pack(image: Image, scratch: Path) -> bytes:
    initrd = Initrd()
    for folder in ("lib64", _LIBRARIES, JOB_FOLDER, "tmp"):
        initrd.folder(folder)
    initrd.file("bin/fio", image.part("fio").read_bytes(), 0o755)
    for name in FIO_LIBRARIES:
        initrd.file(f"{_LIBRARIES}/{name}", image.part(name).read_bytes(), 0o755)
    initrd.link(f"lib64/{_LOADER}", f"/{_LIBRARIES}/{_LOADER}")
    here = [image.part(name) for name in FIO_LIBRARIES]
    library, names = stand_in(image.part("fio"), here, scratch)
    initrd.file(f"{_LIBRARIES}/stand-in.so", library, 0o755)
    for name in names:
        initrd.link(f"{_LIBRARIES}/{name}", "stand-in.so")
    for script in _SCRIPTS:
        content = (GUEST / "fio" / script).read_bytes()
        initrd.file(f"{JOB_FOLDER}/{script}", content, 0o755)
    return initrd.packed()


def stand_in(program: Path, here: Iterable[Path], scratch: Path) -> tuple[bytes, list[str]]:
    """A library with every function that a program wants and no library that is ``here`` has.

    The loader looks for all of them before the program begins; one that is called ends it.

    Args:
        program: what is linked with more than is here.
        here: libraries that are really there, by their names.
        scratch: a folder that is made for the compiler and removed.

    Returns:
        The library, and the names that the loader will want it by.

    """
    there = list(here)
    known = {name for path in there for name, _ in _symbols(path, "--defined-only")}
    missing = [pair for pair in _symbols(program, "--undefined-only") if pair[0] not in known]
    wanted = re.findall(r"NEEDED.*\[(.+)\]", run(["readelf", "-dW", str(program)]))
    names = [name for name in wanted if name not in {path.name for path in there}]
    return _compiled(missing, scratch), names


def _symbols(path: Path, which: str) -> list[tuple[str, str]]:
    """Names of functions and data with their versions (``""``: none), weak ones left out."""
    found = []
    for line in run(["nm", "--dynamic", which, str(path)]).splitlines():
        kind, full = line.split()[-2:]
        name, _, version = full.replace("@@", "@").partition("@")
        if which == "--defined-only" or kind == "U":
            found.append((name, version))
    return found


def _compiled(symbols: list[tuple[str, str]], scratch: Path) -> bytes:
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        lines = [f"void {name}(void) {{ __builtin_trap(); }}" for name, _ in symbols]
        (scratch / "all.c").write_text("\n".join(lines) + "\n")
        (scratch / "all.map").write_text(_versions(symbols))
        flags = ["-shared", "-fPIC", "-nostdlib", "-w", f"-Wl,--version-script={scratch}/all.map"]
        run(["gcc", *flags, "-o", str(scratch / "all.so"), str(scratch / "all.c")])
        return (scratch / "all.so").read_bytes()
    finally:
        shutil.rmtree(scratch)


def _versions(symbols: list[tuple[str, str]]) -> str:
    """A version script: the loader wants each function by the version it was linked with."""
    versions: dict[str, list[str]] = {}
    for name, version in symbols:
        if version:
            versions.setdefault(version, []).append(name)
    return "".join(
        f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items()
    )
