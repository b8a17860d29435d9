"""The wheel holds every source file, and the sdist is enough to build it."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

NOT_PACKED = {"vmferry_lab"}
"""Roots for developers: the laboratory installs vmferry from a checkout."""


@pytest.fixture(scope="module")
def built(repository: Path, run_python: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = ("-m", "build", "--no-isolation", "--outdir", str(folder), str(repository))
    run_python(*build, cwd=folder)
    return folder


def sources(root: Path) -> set[str]:
    return {
        path.relative_to(root.parent).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not {"__pycache__", ".mypy_cache"} & set(path.parts)
    }


def test_the_wheel_holds_exactly_the_source_folders(
    built: Path, repository: Path, project: dict[str, Any]
) -> None:
    (wheel,) = built.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    roots = [repository / folder for folder in project["tool"]["hatch"]["build"]["dev-mode-dirs"]]
    packages = [p for root in roots for p in root.iterdir() if (p / "__init__.py").is_file()]
    packages = [package for package in packages if package.name not in NOT_PACKED]
    assert len(packages) >= 6
    assert packed == set[str]().union(*map(sources, packages))


def test_every_package_says_that_it_is_typed(repository: Path, project: dict[str, Any]) -> None:
    for folder in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (repository / folder / "py.typed").is_file(), folder


def test_every_folder_with_sources_has_an_init(repository: Path, project: dict[str, Any]) -> None:
    for folder in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        for path in (repository / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path} is in no package"


def test_the_sdist_is_an_allow_list(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    expected = {
        *("core", "plugins", "tests", "docs", "examples", "experiments", "benchmarks", "lab"),
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "tox.toml"),
        *("pyproject.toml", "PKG-INFO", ".gitignore"),
    }
    assert tops <= expected
    assert {"core", "plugins", "tests", "LICENSE", "pyproject.toml"} <= tops


def test_the_wheel_carries_license_and_console_script(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "migrate = vmferry.cli:main" in archive.read(points).decode()
