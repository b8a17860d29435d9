"""The ``migrate`` console script."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``migrate`` with these arguments (default: those of the process).

    Returns the exit code, see ``vmferry.cli.exits``; prints errors itself and raises none.
    """
    from vmferry.cli.app import run_command_line

    return run_command_line(arguments)
