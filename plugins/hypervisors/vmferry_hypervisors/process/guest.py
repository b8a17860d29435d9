"""The guest program: ``python -m vmferry_hypervisors.process.guest FOLDER [--incoming]``.

Detaches itself: the command returns when the guest has begun, or prints why it could not. From then
on the guest depends on nobody: it has a session of its own and no pipe to whoever started it.

With ``--incoming`` it begins blank: it reads neither memory nor disk until it is told to resume.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmferry_hypervisors.process.control import Answer, Command
    from vmferry_hypervisors.process.machine import Machine

__all__ = ["GuestProcess", "main"]

_READY = b"ready"
_IDLE = 1.0


class GuestProcess:
    """A guest's life: a machine that steps, and commands between the steps."""

    def __init__(self, folder: Path, *, incoming: bool) -> None:
        from vmferry_hypervisors.process.console import Console, Event
        from vmferry_hypervisors.process.control import ControlServer
        from vmferry_hypervisors.process.folder import GuestFolder
        from vmferry_hypervisors.process.machine import initialise
        from vmferry_hypervisors.process.memory import GuestMemory

        self._folder = GuestFolder(folder.parent, folder.name)
        definition = self._folder.definition()
        self._memory = GuestMemory(folder)
        self._console = Console(self._folder.console)
        self._machine: Machine | None = None
        self._running = self._ending = False
        self._waiting: list[Callable[[], bool]] = []
        if not incoming:
            disks = [(each.disk.name, each.disk.size) for each in definition.disks]
            initialise(self._memory, disks, definition.workload)
            self._console.add(Event.STARTED, 0, 0, 0, 0)
            self._resume()
        self._control = ControlServer(folder)

    def run(self) -> None:
        """Step and obey until told to quit."""
        while not self._ending:
            self._wait()
            self._control.serve(self._handle)
            if self._machine and self._running:
                self._machine.step()
                self._waiting = [done for done in self._waiting if not done()]

    def _wait(self) -> None:
        from vmferry_hypervisors.process.machine import clock

        readers, writers, patience = self._control.descriptors(), [], _IDLE
        if self._machine and self._running:
            patience = self._machine.patience(clock())
            for disk in self._machine.disks:
                if disk.descriptor is not None:
                    readers.append(disk.descriptor)
                    writers += [disk.descriptor] if disk.unsent else []
        select.select(readers, writers, [], patience)

    def _handle(self, command: Command, answer: Answer) -> None:
        commands = {
            "status": self._status,
            "suspend": self._do_suspend,
            "resume": self._do_resume,
            "pivot": self._do_pivot,
            "quiesce": self._do_quiesce,
            "quit": self._do_quit,
        }
        if command.do not in commands:
            raise ValueError(f"there is no command {command.do!r}")
        commands[command.do](command, answer)

    def _status(self, command: Command, answer: Answer) -> None:
        from vmferry_hypervisors.process.control import Reply

        blank = "running" if self._running else "suspended"
        answer(Reply(state=blank if self._machine else "incoming"))

    def _do_suspend(self, command: Command, answer: Answer) -> None:
        if self._machine and self._running:
            self._machine.suspend()
            self._running = False  # not a step more: it would act after its state was stored
        self._status(command, answer)

    def _do_resume(self, command: Command, answer: Answer) -> None:
        if not self._running:
            self._resume()
        self._status(command, answer)

    def _resume(self) -> None:
        from vmferry_hypervisors.process.machine import Machine

        if self._machine is None:
            urls = {each.disk.name: each.url for each in self._folder.definition().disks}
            self._machine = Machine(self._memory, urls, self._console, _log)
        else:
            self._machine.resume()
        self._running = True

    def _do_pivot(self, command: Command, answer: Answer) -> None:
        """Hold the disk, let what is under way complete, switch, answer."""
        machine = self._machine
        if machine is None or not self._running:
            raise ValueError("the guest does not run")
        names = [disk.name for disk in machine.plan.disks]
        if command.disk not in names:
            raise ValueError(f"there is no disk {command.disk!r}; there are: {', '.join(names)}")
        index = names.index(command.disk)
        machine.held.add(index)

        def switch() -> bool:
            if machine.outstanding(index):
                return False
            try:
                machine.pivot(index, command.url)
            except OSError as error:
                self._refuse(machine, index, str(error), answer)
            else:
                self._status(command, answer)
            return True

        self._waiting.append(switch)

    @staticmethod
    def _refuse(machine: Machine, index: int, reason: str, answer: Answer) -> None:
        from vmferry_hypervisors.process.control import Reply

        machine.held.discard(index)
        answer(Reply(error=reason))

    def _do_quiesce(self, command: Command, answer: Answer) -> None:
        """Issue nothing more; answer when nothing is outstanding."""
        machine = self._machine
        if machine is None or not self._running:
            raise ValueError("the guest does not run")
        machine.quiescing = True

        def quiet() -> bool:
            if machine.outstanding():
                return False
            self._status(command, answer)
            return True

        self._waiting.append(quiet)

    def _do_quit(self, command: Command, answer: Answer) -> None:
        self._ending = True
        self._do_suspend(command, answer)


def _log(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _lock(folder: Path) -> int:
    """Take the lock that says the guest lives, and write its number for people to read."""
    descriptor = os.open(folder / "pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _detach(folder: Path) -> None:
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(folder / "guest.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for descriptor, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.close(null)
    os.close(log)


def _live(folder: Path, ready: int, *, incoming: bool) -> None:
    """What the detached process does."""
    try:
        _detach(folder)
        lock = _lock(folder)
        guest = GuestProcess(folder, incoming=incoming)
    except BaseException:
        os.write(ready, traceback.format_exc(limit=-1).encode())
        raise
    os.write(ready, _READY)
    os.close(ready)
    guest.run()
    os.close(lock)


def main() -> int:
    """Start a guest; the exit code is 0 when it has begun."""
    folder, incoming = Path(sys.argv[1]).absolute(), "--incoming" in sys.argv[2:]
    result, ready = os.pipe()
    if os.fork() == 0:
        os.close(result)
        try:
            _live(folder, ready, incoming=incoming)
        except BaseException:
            _log(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    os.close(ready)
    message = b""
    while piece := os.read(result, 4096):
        message += piece
    if message != _READY:
        sys.stderr.write(message.decode(errors="replace"))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
