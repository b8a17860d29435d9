"""``python -m vmferry.simulation``: the fault matrix and the random schedules, all or one."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from vmferry.simulation.matrix import cells, play
from vmferry.simulation.outcome import Outcome
from vmferry.simulation.schedules import play_schedule


def _complaint(found: Outcome) -> str:
    return found.story() if found.violations else ""


def _cell(name: str, seed: int) -> str:
    cell = next((one for one in cells(seed) if str(one) == name), None)
    if cell is None:
        raise SystemExit(f"there is no cell {name!r}; `list` shows all")
    return _complaint(play(cell, seed))


def _schedule(seed: int) -> str:
    return _complaint(play_schedule(seed))


def _all(work: Callable[..., str], items: Iterable[object], jobs: int) -> int:
    count = failed = 0
    with ProcessPoolExecutor(jobs, initializer=_quiet) as pool:
        for story in pool.map(work, items, chunksize=4):
            count += 1
            if story:
                failed += 1
                _say(f"{story}\n")
    _say(f"{count} simulated, {failed} with violations")
    return 1 if failed else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _quiet() -> None:
    logging.getLogger("vmferry").addHandler(logging.NullHandler())
    logging.getLogger("vmferry").propagate = False


def main() -> int:
    """Do what the arguments say; 1 if there was a violation."""
    parser = argparse.ArgumentParser(prog="python -m vmferry.simulation", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "matrix", "cell"):
        command = commands.add_parser(name)
        command.add_argument("--seed", type=int, default=0)
        if name == "cell":
            command.add_argument("name")
    schedule = commands.add_parser("schedule")
    schedule.add_argument("first", type=int)
    schedule.add_argument("last", type=int, nargs="?")
    arguments = parser.parse_args()
    _quiet()
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "schedule":
        first, last = arguments.first, arguments.last or arguments.first
        return _all(_schedule, range(first, last + 1), arguments.jobs)
    if arguments.command == "cell":
        story = _cell(arguments.name, arguments.seed)
        _say(story or "no violation")
        return 1 if story else 0
    names = [str(cell) for cell in cells(arguments.seed)]
    if arguments.command == "matrix":
        return _all(partial(_cell, seed=arguments.seed), names, arguments.jobs)
    _say("\n".join(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
