"""Putting faults into the engine."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

Mutate = Callable[[Any, str, str, str], None]


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Mutate:
    """Replaces a piece of the text of a method or function until the test ends."""

    def replace(owner: Any, name: str, old: str, new: str) -> None:
        text = textwrap.dedent(inspect.getsource(getattr(owner, name)))
        assert text.count(old) == 1, f"{owner.__name__}.{name} no longer says {old!r}"
        module = owner if inspect.ismodule(owner) else sys.modules[owner.__module__]
        scope: dict[str, Any] = {}
        exec(text.replace(old, new), vars(module), scope)
        monkeypatch.setattr(owner, name, scope[name])

    return replace
