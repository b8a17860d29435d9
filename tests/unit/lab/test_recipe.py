from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vmferry_lab import image, recipe
from vmferry_lab.errors import LabError
from vmferry_lab.recipe import FLAVOURS, Recipe


def test_the_key_is_the_same_for_the_same_recipe() -> None:
    assert Recipe.of(["fio", "qdisk"]).key == Recipe.of(["qdisk", "fio"]).key


def test_flavours_and_mirror_make_another_key() -> None:
    keys = {Recipe.of([name]).key for name in FLAVOURS}
    keys |= {Recipe.of([]).key, Recipe.of([], "http://mirror.example/debian").key}
    assert len(keys) == len(FLAVOURS) + 2


def test_a_changed_file_makes_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Recipe.of([]).key
    shutil.copytree(recipe.ROOTFS, tmp_path / "rootfs")
    monkeypatch.setattr(recipe, "ROOTFS", tmp_path / "rootfs")
    assert Recipe.of([]).key == before
    (tmp_path / "rootfs/etc/fstab").write_text("")
    assert Recipe.of([]).key != before


def test_a_flavour_brings_its_packages() -> None:
    assert {"qemu-system-xen", "xen-utils-4.17"} <= set(Recipe.of(["qdisk"]).packages)
    assert "qemu-system-xen" not in Recipe.of([]).packages


def test_an_unknown_flavour_is_named_with_those_there_are() -> None:
    with pytest.raises(LabError, match=r"no flavour vanilla.*drbd, fio"):
        Recipe.of(["fio", "vanilla"])


def test_only_a_finished_image_is_found(tmp_path: Path) -> None:
    wanted = Recipe.of([])
    (tmp_path / "building-abc").mkdir()
    assert image.find(tmp_path, wanted) is None
    (tmp_path / f"image-{wanted.key}").mkdir()
    found = image.find(tmp_path, wanted)
    assert found is not None
    assert found.disk.parent == tmp_path / f"image-{wanted.key}"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise LabError("the mirror is away")

    monkeypatch.setattr(image, "run", fail)
    with pytest.raises(LabError, match="mirror"):
        image.build(tmp_path / "cache", Recipe.of([]), tmp_path / "log")
    assert list((tmp_path / "cache").iterdir()) == []
