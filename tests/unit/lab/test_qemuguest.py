"""What a QEMU guest boots from: built once for the sources there are, and found again."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmferry_lab import guestimage, lab, qemuguest
from vmferry_lab.cli import main
from vmferry_lab.errors import LabError
from vmferry_lab.guestimage import VIRTIO, XEN, build_initrd, pack_initrd
from vmferry_lab.image import Image
from vmferry_lab.lab import Lab


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    """An image of a few bytes, whose parts need no compiler."""
    found = Image(tmp_path / "cache/image-1")
    found.folder.mkdir(parents=True)
    for part in ("busybox", "vmlinuz", "fio", *(f"{name}.ko" for name in (*XEN, *VIRTIO))):
        found.part(part).write_bytes(f"the {part}".encode())
    packed = tmp_path / "fio.img"
    packed.write_bytes(b"FIO")
    monkeypatch.setattr(guestimage, "_compile", lambda folder: b"the writer")
    monkeypatch.setattr(qemuguest, "unpacked", lambda kernel: b"unpacked " + kernel)
    monkeypatch.setattr(
        qemuguest, "build_fio", lambda cache, image: packed if image.part("fio").exists() else None
    )
    monkeypatch.setattr(lab, "find", lambda cache, recipe: found)
    monkeypatch.setattr(lab.requirements, "check", lambda **_: None)
    return found


@pytest.mark.parametrize("modules", [VIRTIO, XEN])
def test_modules_are_loaded_in_their_order(image: Image, modules: tuple[str, ...]) -> None:
    archive = gzip.decompress(pack_initrd(image, modules, image.folder / "scratch"))
    names = [f"lib/modules/{number}-{name}.ko" for number, name in enumerate(modules)]
    assert names == sorted(names), "the guest's shell sorts them so"
    found = re.findall(rb"lib/modules/[\w-]+\.ko(?=\0)", archive)
    assert [name.decode() for name in found] == names
    assert b"the writer" in archive


def test_xens_guests_have_xens_modules(image: Image) -> None:
    archive = gzip.decompress(build_initrd(image.folder.parent, image).read_bytes())
    assert b"-xen-blkfront.ko\0" in archive
    assert b"virtio" not in archive


def test_it_is_built_once_and_then_found(image: Image, tmp_path: Path) -> None:
    laboratory = Lab(tmp_path)
    with pytest.raises(LabError, match=f"no QEMU guest .*--state-dir {tmp_path} guest$"):
        laboratory.qemu_guest()
    built = laboratory.build_qemu_guest()
    assert built.kernel.read_bytes() == b"unpacked the vmlinuz"
    assert built.initrd.read_bytes().endswith(b"FIO")
    assert laboratory.qemu_guest() == built
    built.initrd.write_bytes(b"as it was")
    assert laboratory.build_qemu_guest().initrd.read_bytes() == b"as it was"
    assert sorted(path.name for path in built.kernel.parent.iterdir()) == ["initrd.img", "vmlinuz"]


@pytest.mark.usefixtures("image")
def test_one_of_other_sources_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory = Lab(tmp_path)
    old = laboratory.build_qemu_guest()
    monkeypatch.setattr(qemuguest, "digest_sources", lambda seed: "other")
    with pytest.raises(LabError, match="no QEMU guest of this checkout"):
        laboratory.qemu_guest()
    new = laboratory.build_qemu_guest()
    assert new.kernel.parent != old.kernel.parent
    assert not old.kernel.exists()


def test_an_image_without_fio_does_not_do(image: Image, tmp_path: Path) -> None:
    image.part("fio").unlink()
    with pytest.raises(LabError, match="has no fio"):
        Lab(tmp_path).build_qemu_guest()


@pytest.mark.usefixtures("image")
def test_the_command_says_what_it_built(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--state-dir", str(tmp_path), "guest"])
    assert done.exit_code == 0, done.output
    assert done.output.split() == [str(path) for path in Lab(tmp_path).qemu_guest()]


def test_what_boots_no_host_needs_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="apt install") as refused:
        Lab(tmp_path).build_qemu_guest()
    assert "mmdebstrap" in str(refused.value)
    assert "openssh" not in str(refused.value)
