"""Downtime and the cost of tracking on two real Xen hosts, those of the laboratory.

``downtime``: the same guest by unmodified ``xl migrate`` and by ``migrate run``, in turns. The
guest tells by its own clock how long it stood still. For ``xl migrate`` the destination has a disk
of the same size in place of a shared one: xl does not read disks, so its downtime is the same, but
what the guest finds there is not judged. ``cost``: writes a second of a guest that writes as fast
as it can, while nothing tracks its disk, while a tracker does, and while that is harvested every
five seconds besides, in turns. The other hosts are halted meanwhile.

Prints each run, then medians and their ratios. Figures of different runs do not compare.

    python -m vmferry_lab up
    PYTHONPATH=lab python benchmarks/xen_lab.py downtime --rate idle --rate 20 --runs 3
    PYTHONPATH=lab python benchmarks/xen_lab.py cost --seconds 20 --runs 3
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from vmferry.units import MIB
from vmferry_lab import Host, Lab
from vmferry_lab.ferry import Ferry
from vmferry_lab.leftovers import one_migration

TRACK = Path(__file__).with_name("xen_track.py")
SETTLE = 5.0
_SIGNALS = {"stopped": "USR1", "tracking": "USR1", "harvesting": "USR2"}


@click.group()
def main() -> None:
    """Figures from the laboratory."""


@contextmanager
def _ferry() -> Iterator[Ferry]:
    lab = Lab(say=lambda line: print(line, file=sys.stderr))
    lab.up()
    with one_migration(lab, "xenbr0"):
        ferry = Ferry(lab.host("hosta"), lab.host("hostb"))
        try:
            yield ferry
        finally:
            ferry.close()


@contextmanager
def _alone(host: Host) -> Iterator[None]:
    """No other host of the laboratory takes processors from this one."""
    others = [each for each in Lab().hosts() if each.name != host.name]
    for each in others:
        each.machine.monitor("stop")
    try:
        yield
    finally:
        for each in others:
            each.machine.monitor("cont")
            each.set_clock()


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


@main.command()
@click.option("--rate", "rates", multiple=True, default=("idle", "20"), help="Writes a second.")
@click.option("--size", "sizes", multiple=True, type=int, default=(256,), help="MiB of the disk.")
@click.option("--runs", default=3, show_default=True)
@click.option("--tracker", default="blkback", show_default=True)
def downtime(rates: tuple[str, ...], sizes: tuple[int, ...], runs: int, tracker: str) -> None:
    """How long the guest stands still, beside xl's own migration."""
    for size in sizes:
        for rate in rates:
            seen: dict[str, list[float]] = {"xl": [], "vmferry": []}
            for _ in range(runs):
                seen["xl"].append(_by_xl(rate, size * MIB))
                seen["vmferry"].append(_by_vmferry(rate, size * MIB, tracker))
            medians = {name: statistics.median(gaps) for name, gaps in seen.items()}
            ratio = round(medians["vmferry"] / medians["xl"], 2)
            _say(size=size, rate=rate, medians=medians, ratio=ratio)


def _start(ferry: Ferry, rate: str, size: int) -> None:
    ferry.guest(size=size, rate=rate, prefill=8)
    time.sleep(SETTLE)
    ferry.set_clocks()
    ferry.here.order(ferry.name, "reset")


def _by_xl(rate: str, size: int) -> float:
    with _ferry() as ferry:
        _start(ferry, rate, size)
        for disk in ferry.disks:
            ferry.there.make_disk(disk.rpartition("/")[2], size)
        try:
            began = time.monotonic()
            ferry.source.run(["xl", "migrate", ferry.name, ferry.destination.name])
            took = time.monotonic() - began
            gap = _gap(ferry)
        finally:
            ferry.there.destroy(ferry.name)
            for disk in ferry.disks:
                ferry.there.remove_disk(disk.rpartition("/")[2])
    _say(by="xl", rate=rate, size=size // MIB, gap=gap, took=round(took, 1))
    return gap


def _by_vmferry(rate: str, size: int, tracker: str) -> float:
    with _ferry() as ferry:
        ferry.serve("--once")
        _start(ferry, rate, size)
        ferry.run(tracker)
        if ferry.code():
            raise click.ClickException(ferry.log(ferry.source))
        gap, told = _gap(ferry), ferry.summary()
        verdict = ferry.there.verdict(ferry.name)
        if not verdict.good:
            raise click.ClickException(f"the guest lost writes: {verdict}")
    _say(
        by="vmferry",
        rate=rate,
        size=size // MIB,
        gap=gap,
        **{name: told[name] for name in ("downtime", "pending", "phases")},
    )
    return gap


def _gap(ferry: Ferry) -> float:
    """Longest time the guest stood still, once it has run at the destination."""
    ferry.wait(lambda: ferry.there.report(ferry.name).gap > 0, "the guest runs")
    return ferry.there.report(ferry.name).gap


@main.command()
@click.option("--seconds", default=20.0, show_default=True, help="Of each measurement.")
@click.option("--runs", default=3, show_default=True)
@click.option("--tracker", "trackers", multiple=True, default=("blkback", "dm-era"))
def cost(seconds: float, runs: int, trackers: tuple[str, ...]) -> None:
    """What a tracker costs the guest's writes, by itself and harvested every five seconds."""
    with _ferry() as ferry, _alone(ferry.source):
        ferry.source.put(TRACK, "/root/xen_track.py")
        ferry.guest(size=64 * MIB, rate="idle", prefill=1)
        for tracker in trackers:
            seen: dict[str, list[float]] = {word: [] for word in _SIGNALS}
            with _tracking(ferry, tracker) as become:
                for _ in range(runs):
                    for word, speeds in seen.items():
                        become(word)
                        speeds.append(_speed(ferry, f"{tracker} {word}", seconds))
                    become("stopped")
            medians = {word: round(statistics.median(each), 1) for word, each in seen.items()}
            shares = {
                word: round(1 - each / medians["stopped"], 3) for word, each in medians.items()
            }
            _say(tracker=tracker, medians=medians, cost=shares)


@contextmanager
def _tracking(ferry: Ferry, tracker: str) -> Iterator[Callable[[str], None]]:
    """A program in the host that tracks the guest's disk or not; yields what has it do so."""
    host, log, program = ferry.source, "/root/xen_track.log", "[p]ython /root/xen_track.py"
    line = f"/opt/vmferry/bin/python /root/xen_track.py {ferry.name} {tracker}"
    host.run(f"rm -f {log}; setsid sh -c '{line}' > {log} 2>&1 < /dev/null &")

    def until(word: str) -> None:
        ferry.wait(lambda: host.run(f"tail -n 1 {log}").strip() == word, f"{tracker} is {word}")

    def become(word: str) -> None:
        if host.run(f"tail -n 1 {log}").strip() != word:
            host.run(f"pkill -{_SIGNALS[word]} -f '^/opt/vmferry/bin/{program}'")
            until(word)

    until("stopped")
    try:
        yield become
    finally:
        host.run(f"pkill -INT -f '^/opt/vmferry/bin/{program}'")
        until("ended")


def _speed(ferry: Ferry, what: str, seconds: float) -> float:
    """Writes a second, by the guest's own count and clock; it rests before and after."""
    ferry.here.order(ferry.name, "rate max")
    time.sleep(2)
    first = ferry.here.report(ferry.name)
    time.sleep(seconds)
    last = ferry.here.report(ferry.name)
    ferry.here.order(ferry.name, "rate idle")
    speed = (last.writes - first.writes) / (last.uptime - first.uptime)
    _say(of=what, writes_per_second=round(speed, 1))
    return speed


if __name__ == "__main__":
    main()
