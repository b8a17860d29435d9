"""Print pip constraints that pin every dependency to the lowest version the project allows.

Usage: ``python lowest_versions.py pyproject.toml > constraints.txt``.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("experiments", "distributed")
"""What vmferry itself imports when it is there."""


def lowest(requirements: Iterable[str]) -> Iterator[str]:
    """A pin for each requirement that applies to this interpreter.

    Raises:
        ValueError: a requirement has no lower bound.

    """
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        floors = [one.version for one in requirement.specifier if one.operator in {">=", "=="}]
        if not floors:
            raise ValueError(f"{text!r} has no lower bound")
        yield f"{requirement.name}=={floors[0]}"


def main(path: str) -> None:
    """Print the constraints of the project at ``path``."""
    project = tomllib.loads(Path(path).read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(each for name in EXTRAS for each in extras[name])]
    print("\n".join(lowest(needed)))


if __name__ == "__main__":
    main(sys.argv[1])
