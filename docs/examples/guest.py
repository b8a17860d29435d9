"""Start a process guest that can be migrated, and check it once it has been.

    python guest.py FOLDER [--size 1GiB] [--name web1] [--opt KEY=VALUE ...]

The guest runs until the script ends. ``FOLDER/source`` plays the host it starts on,
``FOLDER/destination`` the host it can be moved to.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any, cast

import click

from vmferry.api import Trial
from vmferry.plugins import load
from vmferry.units import parse_size


async def play(folder: Path, size: int, options: dict[str, str]) -> int:
    """Run the guest until somebody names its final disk, then compare disk and record."""
    trial = cast("Trial[Any]", load("trial", "process", options))
    name = await trial.start(folder, size)
    click.echo(f"guest {name} runs and writes to {folder}/disk0.raw")
    click.echo(f"its host: --hypervisor-opt state_dir={folder}/source")
    click.echo(f"another:  --hypervisor-opt state_dir={folder}/destination")
    click.echo("once it has moved, type where its disk is now; end of input just ends it:")
    try:
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line.strip():
            return 0
        verdict = await trial.verdict(line.strip())
        click.echo("nothing was lost" if verdict.good else f"DATA WAS LOST OR WRONG: {verdict}")
        return 0 if verdict.good else 1
    finally:
        await trial.close()


def main() -> int:
    """Read the command line and play."""
    parser = argparse.ArgumentParser(description="Start a process guest that can be migrated.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=parse_size, default=1 << 30, help="size of its disk")
    parser.add_argument("--name", default="web1", help="name of the guest")
    parser.add_argument("--opt", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    options = dict(text.split("=", 1) for text in given.opt)
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(play(folder, given.size, {"guest": given.name, **options}))


if __name__ == "__main__":
    sys.exit(main())
