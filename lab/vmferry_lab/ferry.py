"""A migration between the two hosts, step by step: begun, watched, disturbed, judged."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from vmferry_lab.domains import Domains
from vmferry_lab.errors import CommandFailed, LabError
from vmferry_lab.guest import WRITER_DISK
from vmferry_lab.host import Host
from vmferry_lab.layout import HOSTS

__all__ = ["Ferry", "clear_host"]

_PORT = 7431
_PATIENCE = 1200.0
_INSECURE = "--transport-opt insecure=true"
_SLOW = "--stall-timeout 600s --patience 120s"
"""A machine with other work makes an emulated host stand still for long."""
_END = "^CODE="
"""Begins the line with a command's exit code."""
_FOUND = """\
dmsetup ls | grep -o '^vmferry-[^ \t]*'
cat /sys/block/nbd*/backend 2>/dev/null
xl list | grep -oE '[^ ]+--(incoming|migratedaway)'
pgrep -fa '[x]en/relay.py|[x]l migrate'
true
"""


class Ferry:
    """One guest on its way from ``source`` to ``destination``; :meth:`close` removes all of it.

    Attributes:
        name: of the guest; no other has it.
        folder: on both hosts, for state, pool and the output of ``migrate``.
        disks: the guest's at the source.

    """

    def __init__(self, source: Host, destination: Host) -> None:
        self.source, self.destination = source, destination
        self.name = f"ferry-{secrets.token_hex(3)}"
        self.folder = _folder(self.name)
        self.disks: list[str] = []

    @property
    def _hosts(self) -> tuple[Host, Host]:
        return self.source, self.destination

    @property
    def here(self) -> Domains:
        """Guests of the source."""
        return self.source.guests

    @property
    def there(self) -> Domains:
        """Guests of the destination."""
        return self.destination.guests

    def set_clocks(self) -> None:
        """Have both hosts agree on the time, so that the guest can tell its downtime."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Host.set_clock, self._hosts))

    def guest(
        self,
        disks: int = 1,
        *,
        size: int = 32 << 20,
        network: bool = False,
        backend: str = "phy",
        fio: str = "",
        **writer: Any,
    ) -> None:
        """Start the guest at the source.

        Args:
            disks: how many it has.
            size: bytes of each.
            network: whether it has a network card.
            backend: what serves its disks at the source, ``phy`` or ``qdisk``.
            fio: text of a job file for the first disk; there is one more then, for the writer.
            writer: options of its writer.

        """
        sizes = [size] * disks + ([WRITER_DISK] if fio else [])
        for number, each in enumerate(sizes):
            self.disks.append(self.here.make_disk(f"{self.name}-{number}", each))
        self.start(self.disks, network=network, backend=backend, fio=fio, **writer)

    def start(
        self, devices: Sequence[str], *, network: bool = False, backend: str = "phy", **more: Any
    ) -> None:
        """Start the guest at the source, on devices that are there already."""
        self.here.start(self.name, devices, network=network, backend=backend, **more)
        if more.get("prefill"):
            self.wait(lambda: not self.here.report(self.name).busy, "the guest fills its disks")

    def serve(self, *options: str) -> None:
        """Start an agent at the destination; whatever needs it waits until it listens.

        The hosts do not wait for each other: begun before :meth:`guest`, it costs no time.
        """
        self.destination.run(f"mkdir -p {self.folder}/pool; rm -f {self.folder}/log")
        self._begin(
            self.destination,
            f"migrate serve tcp://0.0.0.0:{_PORT} {_INSECURE} --pool {self.folder}/pool "
            f"--state-dir {self.folder}/state --hypervisor-opt timeout=300 --patience 120s "
            f"{' '.join(options)}",
        )

    def listening(self) -> None:
        """Wait until the agent listens.

        Raises:
            LabError: it has ended instead.

        """
        if "CODE=" in self._await_line(self.destination, f"listening|{_END}", "the agent listens"):
            raise LabError(f"the agent has ended: {self.log(self.destination)}")

    def run(self, tracker: str, *options: str) -> None:
        """Begin to migrate, to an agent that was begun; returns at once."""
        self.listening()
        self.source.run(f"mkdir -p {self.folder}")
        self._begin(
            self.source,
            f"migrate run {self.name} tcp://{HOSTS[1].address}:{_PORT} --hypervisor xen "
            f"{_INSECURE} --json --tracker {tracker} --state-dir {self.folder}/state "
            f"--hypervisor-opt timeout=300 {_SLOW} {' '.join(options)}",
        )

    def _begin(self, host: Host, command: str) -> None:
        script = f"{command}; echo CODE=$?"
        log = f"{self.folder}/log"
        host.run(f"setsid sh -c {shlex.quote(script)} > {log} 2>&1 < /dev/null &")

    def kill_agent(self, signal: str = "KILL") -> None:
        """End the destination's agent, and wait until it is gone."""
        self.destination.run(f"pkill -{signal} -f '[b]in/migrate serve .*{self.folder}'")
        self.code(self.destination)

    def interrupt(self) -> None:
        """What Ctrl-C does at the source."""
        self.source.run(f"pkill -INT -f '[b]in/migrate run {self.name}'")

    def kill_relay(self) -> None:
        """Kill the program that xl at the source takes for ssh."""
        self.source.run("pkill -9 -f '[x]en/relay.py'")

    def stop_source_at(self, word: str, *, timeout: float = _PATIENCE) -> None:
        """Stop the source's process (SIGSTOP) as soon as it says a word, such as a phase."""
        name = shlex.quote(f"[b]in/migrate run {self.name}")
        script = f"until grep -q {shlex.quote(word)} {self.folder}/log; do sleep 0.1; done"
        bounded = ["timeout", str(int(timeout)), "sh", "-c", f"{script}; pkill -STOP -f {name}"]
        self.source.run(bounded, timeout=timeout + 60)

    def continue_source(self) -> None:
        """Let a source go on that was stopped."""
        self.source.run(f"pkill -CONT -f '[b]in/migrate run {self.name}'")

    def log(self, host: Host) -> str:
        """What the command on a host has written so far."""
        return host.run(f"cat {self.folder}/log 2>/dev/null || true")

    def code(self, host: Host | None = None) -> int:
        """The exit code of the command on a host, by default the source, once it has ended."""
        where = host or self.source
        line = self._await_line(where, _END, "the command ends")
        return int(line.rpartition("CODE=")[2])

    def _await_line(self, host: Host, pattern: str, what: str) -> str:
        """The first such line of a command's output, as soon as it is there.

        One command waits in the host: each look from here would cost an emulated processor what
        the migration needs, most of all while the guest stands still.
        """
        follow = (
            f"tail -n +1 -F {self.folder}/log 2>/dev/null | grep -E -m 1 {shlex.quote(pattern)}"
        )
        try:
            bounded = ["timeout", str(int(_PATIENCE)), "sh", "-c", follow]
            return host.run(bounded, timeout=_PATIENCE + 60)
        except CommandFailed as failed:
            raise LabError(f"{what}: not within {_PATIENCE:.0f} s; {self.log(host)}") from failed

    def summary(self) -> dict[str, Any]:
        """The event ``finished`` of the source."""
        lines = [line for line in self.log(self.source).splitlines() if '"finished"' in line]
        return msgspec.json.decode(lines[-1], type=dict[str, Any])

    def reach(self, phase: str) -> None:
        """Wait until the source has said a word, such as a phase, or has ended."""
        self._await_line(self.source, f'"{phase}"|{_END}', f"the source reaches {phase}")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Look every second until ``condition`` holds.

        Raises:
            LabError: it does not within 20 minutes.

        """
        until = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > until:
                raise LabError(f"{what}: not within {_PATIENCE:.0f} s")
            time.sleep(1)

    def writes_on(self, host: Host) -> None:
        """Wait until the guest, on that host, has gone on writing."""
        before = host.guests.report(self.name).writes
        self.wait(lambda: host.guests.report(self.name).writes > before, "the guest writes")

    def left(self, host: Host) -> list[str]:
        """All on a host that only a migration makes.

        The program that received a guest stays to watch it, as with any guest that xl has made.
        """
        found = host.run(_FOUND).splitlines()
        if self.name not in host.guests.running():
            return found
        return [each for each in found if not each.endswith("xl migrate-receive")]

    def close(self) -> None:
        """End and remove everything, wherever it is."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda host: clear_host(host, self.name), self._hosts))
        for disk in self.disks:
            self.here.remove_disk(disk.rpartition("/")[2])


def _folder(name: str) -> str:
    return f"/root/{name}"


def clear_host(host: Host, name: str) -> None:
    """End and remove on one host all that there is of a :class:`Ferry`, but for its disks."""
    folder = _folder(name)
    host.run(f"pkill -9 -f '[m]igrate .*{folder}|[x]l migrate {name} ' || true")
    for each in (name, f"{name}--incoming", f"{name}--migratedaway"):
        host.guests.destroy(each)
    host.run("migrate cleanup --hypervisor xen")
    host.run(f"rm -rf {folder}")
