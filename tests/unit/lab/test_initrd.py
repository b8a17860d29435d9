from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmferry_lab.cpio import Initrd
from vmferry_lab.hostinitrd import build_host_initrd
from vmferry_lab.image import HOST_MODULES, Image


def _initrd() -> bytes:
    initrd = Initrd()
    initrd.folder("bin")
    initrd.file("bin/program", b"#!/bin/sh\n", 0o755)
    initrd.link("bin/sh", "program")
    initrd.file("odd", b"12345")
    return initrd.packed()


def test_the_same_files_give_the_same_bytes() -> None:
    assert _initrd() == _initrd()


def test_every_entry_begins_on_four_bytes() -> None:
    archive = gzip.decompress(_initrd())
    at = [place for place in range(len(archive)) if archive.startswith(b"070701", place)]
    assert len(at) == 5
    assert all(place % 4 == 0 for place in at)


@pytest.mark.real
@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_it(tmp_path: Path) -> None:
    archive = gzip.decompress(_initrd())
    subprocess.run(["cpio", "-id", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/program").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/sh").read_text() == "#!/bin/sh\n"
    assert (tmp_path / "odd").read_bytes() == b"12345"


def test_the_hosts_initrd_has_every_module_that_it_loads(tmp_path: Path) -> None:
    image = Image(tmp_path / "image-1")
    image.folder.mkdir()
    for part in ("busybox", *(f"{name}.ko" for name in HOST_MODULES)):
        image.part(part).write_bytes(f"the {part}".encode())
    initrd = build_host_initrd(tmp_path, image)
    archive = gzip.decompress(initrd.read_bytes())
    (loaded,) = re.findall(rb"for module in (.*); do", archive)
    assert loaded.decode().split() == list(HOST_MODULES)
    assert all(f"lib/{name}.ko\0".encode() in archive for name in HOST_MODULES)
    assert all(f"the {name}.ko".encode() in archive for name in HOST_MODULES)
    assert build_host_initrd(tmp_path, image) == initrd
