"""What a plugin author reads is complete, and says what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import msgspec
import pytest

from vmferry import api
from vmferry.api import HookSpecs, Progress, RoundReport, Summary
from vmferry.cli.exits import MEANINGS, ExitCode
from vmferry.plugins import KINDS

DOCS = Path(__file__).parents[2] / "docs"
HOOKS = {name: spec for name, spec in vars(HookSpecs).items() if name.startswith("vmferry_")}
CLASSES = [
    value
    for name in api.__all__
    if inspect.isclass(value := getattr(api, name)) and value.__module__.startswith("vmferry.")
]


def own_docstring(cls: type) -> str:
    return vars(cls).get("__doc__") or ""


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_public_class_and_method_has_a_docstring(cls: type) -> None:
    assert own_docstring(cls).strip(), cls
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        assert inspect.getdoc(function), f"{cls.__name__}.{name}"


def test_every_contract_module_has_a_docstring_and_is_exported() -> None:
    modules = {cls.__module__ for cls in CLASSES}
    assert len(modules) >= 8
    for name in modules:
        assert inspect.getdoc(inspect.getmodule(next(c for c in CLASSES if c.__module__ == name)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_groups_is_right(kind: str) -> None:
    group, base = KINDS[kind]
    row = next(line for line in (api.__doc__ or "").splitlines() if line.startswith(f"{group} "))
    assert f"``{base.__name__}``" in row
    assert f"``{base.__module__}``" in row


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_parameters(name: str) -> None:
    text = (DOCS / "hooks.md").read_text()
    signature = re.search(rf"^### `{name}\((.*?)\)", text, re.MULTILINE)
    assert signature is not None, f"{name} is missing in docs/hooks.md"
    wanted = [p for p in inspect.signature(HOOKS[name]).parameters if p != "self"]
    assert re.findall(r"(\w+): ", signature[1]) == wanted


def test_no_hook_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^### `(vmferry_\w+)", (DOCS / "hooks.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(HOOKS)


def test_observers_and_policies_are_told_apart_as_in_the_contract() -> None:
    observers, policies = (DOCS / "hooks.md").read_text().split("\n## Policies")
    for name, spec in HOOKS.items():
        role = (inspect.getdoc(spec) or "").partition(":")[0]
        assert f"### `{name}(" in {"Observer": observers, "Policy": policies}[role]


@pytest.mark.parametrize(
    ("event", "struct"),
    [("progress", Progress), ("round_finished", RoundReport), ("finished", Summary)],
)
def test_every_field_of_a_json_event_is_documented(
    event: str, struct: type[msgspec.Struct]
) -> None:
    sections = (DOCS / "json-events.md").read_text().split("\n## ")
    section = next(part for part in sections if part.startswith(f"`{event}`"))
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert documented == set(struct.__struct_fields__) - {"job"}


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(ExitCode)
