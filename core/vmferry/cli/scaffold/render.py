"""A sample under another name, as the files of a project."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

from vmferry import __version__
from vmferry.errors import InputError
from vmferry.plugins import HOOK, KINDS, available
from vmferry.plugins.kinds import group_of

__all__ = ["SAMPLES", "Project", "Sample", "render"]

_PACKAGE = "vmferry.cli.scaffold.samples"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40


class Sample(NamedTuple):
    """A plugin in the folder ``samples``.

    Attributes:
        word: its name; ``prefix`` is how its classes begin.
        prefix: e.g. ``Scan`` of ``ScanTracker``.
        plugin: the class that is registered.
        modules: the file that holds it, and those it needs.
        tests: files of its tests.

    """

    word: str
    prefix: str
    plugin: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]


SAMPLES: Mapping[str, Sample] = MappingProxyType(
    {
        "volume": Sample("plainfile", "Plain", "PlainDriver", ("volume",), ("test_volume",)),
        "tracker": Sample("scan", "Scan", "ScanTracker", ("tracker",), ("test_tracker",)),
        "transport": Sample(
            "loopback", "Loopback", "LoopbackTransport", ("transport",), ("test_transport",)
        ),
        "hypervisor": Sample(
            "puppet",
            "Puppet",
            "PuppetHypervisor",
            ("hypervisor", "machine"),
            ("test_hypervisor",),
        ),
        HOOK: Sample("curfew", "Curfew", "Curfew", ("hook",), ("test_hook",)),
    }
)
"""By kind."""


class Project(NamedTuple):
    """A project that was not written yet.

    Attributes:
        distribution: its name, which its folder has too.
        files: contents by path below that folder.

    """

    distribution: str
    files: Mapping[str, str]


def render(kind: str, name: str) -> Project:
    """The project of a plugin of that kind and name.

    Raises:
        InputError: the name cannot be a plugin's, or is taken; or there is no sample of that kind.

    """
    if kind not in SAMPLES:
        raise InputError(f"no sample of kind {kind!r}; there are: {', '.join(SAMPLES)}")
    _check_name(kind, name)
    sample, package = SAMPLES[kind], f"vmferry_{name.replace('-', '_')}"
    distribution = f"vmferry-{name}"
    contents = {
        "pyproject.toml": _pyproject(kind, name, sample, distribution, package),
        "README.md": _readme(kind, name, distribution),
        f"src/{package}/__init__.py": f'"""The {kind} plugin ``{name}`` of vmferry."""\n',
        f"src/{package}/py.typed": "",
    }
    for folder, modules in ((f"src/{package}", sample.modules), ("tests", sample.tests)):
        for module in modules:
            text = files(_PACKAGE).joinpath(f"{module}.py").read_text(encoding="utf-8")
            contents[f"{folder}/{module}.py"] = _renamed(text, sample, name, package)
    return Project(distribution, contents)


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise InputError(
            f"{name!r} cannot be a plugin's name: write small letters and digits, words joined by "
            f"hyphens, at most {_LONGEST} characters, e.g. 'tape-robot'"
        )
    for info in available(kind):
        if info.name == name:
            raise InputError(
                f"{info.distribution} {info.version} has a {kind} plugin {name!r} already; "
                "choose another name"
            )


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))


def _renamed(text: str, sample: Sample, name: str, package: str) -> str:
    text = text.replace(_PACKAGE, package)
    text = re.sub(rf"\b{sample.word}\b", name, text)
    text = re.sub(rf"\b{sample.word.upper()}\b", name.replace("-", "_").upper(), text)
    return re.sub(rf"\b(Test)?{sample.prefix}(?=[A-Z]\w|\b)", rf"\1{_camel(name)}", text)


def _plugin(sample: Sample, name: str) -> str:
    return _camel(name) + sample.plugin.removeprefix(sample.prefix)


def _pyproject(kind: str, name: str, sample: Sample, distribution: str, package: str) -> str:
    major, minor = __version__.split(".")[:2]
    return f"""\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "The {kind} plugin '{name}' of vmferry"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["vmferry>={major}.{minor}"]

[project.optional-dependencies]
test = ["vmferry[testing]"]

[project.entry-points."{group_of(kind)}"]
{name} = "{package}.{sample.modules[0]}:{_plugin(sample, name)}"

[tool.hatch.build.targets.wheel]
packages = ["src/{package}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
asyncio_default_fixture_loop_scope = "function"
"""


def _readme(kind: str, name: str, distribution: str) -> str:
    chosen = "" if kind == HOOK else f" --kind {kind}"
    return f"""\
# {distribution}

The {kind} plugin `{name}` of vmferry. It works as it stands; make it yours.

```console
$ pip install -e '.[test]'
$ pytest
$ migrate plugins show {name}{chosen}
```

The tests are those of `vmferry.testing.{kind}`. Each failure quotes the sentence of the contract
that was broken. What the plugin says it cannot do is skipped; `pytest -rs` shows that.
"""


assert set(SAMPLES) <= {*KINDS, HOOK}
