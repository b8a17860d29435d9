"""Convergence policies by name: when PUSH is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmferry.engine.policy import PolicyOptions
from vmferry.errors import InputError
from vmferry.experiments.nearest import known
from vmferry.plugins.options import validate

__all__ = ["POLICIES", "read_policies"]

POLICIES: Mapping[str, PolicyOptions] = {
    "default": PolicyOptions(),
    "one-round": PolicyOptions(max_rounds=1),
    "converge": PolicyOptions(threshold=0, max_rounds=30, min_gain=0.0),
}
"""default: vmferry's own. one-round: switch after the full copy; PULL does the rest. converge: go
on while rounds shrink what is dirty, as migrations without PULL must."""


def read_policies(tables: Mapping[str, Any]) -> dict[str, PolicyOptions]:
    """All policies by name, those of a file's ``[policy.NAME]`` tables among them.

    Raises:
        InputError: a key or value is wrong; names it.

    """
    policies = dict(POLICIES)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"[policy] {name!r} must be a table, [policy.{name}]")
        known(f"[policy.{name}] key", table, PolicyOptions.__struct_fields__)
        policy = validate(f"policy {name!r}", PolicyOptions, table)
        assert isinstance(policy, PolicyOptions)
        policies[name] = policy
    return policies
