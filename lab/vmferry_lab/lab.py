"""A laboratory: its hosts together, from a folder."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmferry_lab import preparing, requirements
from vmferry_lab.errors import LabError, LabNotUp
from vmferry_lab.guestfio import build_fio
from vmferry_lab.guestimage import build_initrd
from vmferry_lab.guestkernel import build_kernel
from vmferry_lab.host import Host
from vmferry_lab.hostinitrd import build_host_initrd
from vmferry_lab.image import Image, build, find
from vmferry_lab.install import Environment
from vmferry_lab.layout import HOSTS, STORAGE, Layout
from vmferry_lab.machine import Machine
from vmferry_lab.mirror import Mirror, make_mirror, remove_mirror
from vmferry_lab.qemuguest import FLAVOURS, QemuGuest, build_guest, find_guest
from vmferry_lab.recipe import Recipe
from vmferry_lab.ssh import Ssh
from vmferry_lab.storage import share_disk, unshare_disk

__all__ = ["Lab", "default_folder"]

_LAN = 60.0
"""Seconds that the LAN may take to carry something, once both hosts are up."""

_CHECKOUT = Path(__file__).resolve().parents[2]


def default_folder() -> Path:
    """``VMFERRY_LAB`` of the environment, else ``.lab`` in the current folder."""
    return Path(os.environ.get("VMFERRY_LAB") or ".lab")


def _silent(line: str) -> None:
    """What is said to nobody."""


@dataclass
class Lab:
    """The laboratory in a folder, running or not.

    Attributes:
        root: its folder; made by :meth:`up`.
        checkout: the folder with the sources of vmferry that the hosts get.
        say: gets a line before everything that takes long.

    """

    root: Path = field(default_factory=default_folder)
    checkout: Path = _CHECKOUT
    say: Callable[[str], None] = _silent

    @property
    def layout(self) -> Layout:
        """Where its files are."""
        return Layout(self.root.absolute())

    def up(
        self,
        *,
        flavours: Iterable[str] = (),
        storage: bool = False,
        mirror: str | None = None,
        timeout: float = 900.0,
    ) -> None:
        """Build what is missing, boot the hosts, wait until they run commands, install vmferry.

        A laboratory that is up stays as it is. If one host fails, all are ended again; their
        logs stay.

        Args:
            flavours: names of further packages, see :data:`vmferry_lab.recipe.FLAVOURS`.
            storage: whether there is a third host for shared disks.
            mirror: the Debian mirror.
            timeout: seconds for a host to boot.

        Raises:
            Missing: programs are not installed here.
            CommandFailed: a build failed.
            BootFailed: a host did not come up.

        """
        with self._alone():
            if self.is_up():
                return
            requirements.check()
            recipe = Recipe.of([*flavours, *(["storage"] if storage else [])], mirror)
            plan = self._plan(recipe, storage=storage)
            try:
                self._boot(plan, timeout)
                self._install()
            except BaseException:
                self._end()
                raise

    def install(self) -> None:
        """Put vmferry as it is in the checkout into every Xen host, in place of what is there.

        ``/opt/vmferry`` is its virtual environment, ``migrate`` is on the path.

        Raises:
            LabNotUp: there is no host.
            CommandFailed: the wheel cannot be built.

        """
        with self._alone():
            self._install()

    def down(self, *, purge: bool = False) -> None:
        """End the hosts and remove their disks; logs and cache stay, unless ``purge``."""
        if not self.root.exists():
            return
        with self._alone():
            self._end()
            if purge:
                for folder in (self.layout.cache, self.layout.logs, self.layout.keys):
                    shutil.rmtree(folder, ignore_errors=True)

    def build_qemu_guest(self, *, mirror: str | None = None) -> QemuGuest:
        """What a QEMU guest that runs fio boots from, built if it is new; boots no host.

        Args:
            mirror: the Debian mirror that an image is built from, if there is none with fio.

        Raises:
            Missing: programs are not installed here.
            CommandFailed: a build failed.

        """
        found = find_guest(self.layout.cache)
        if found is not None:
            return found
        with self._alone():
            requirements.check(hosts=False)
            return build_guest(self.layout.cache, self._image(Recipe.of(FLAVOURS, mirror)))

    def qemu_guest(self) -> QemuGuest:
        """The same, where it has been built.

        Raises:
            LabError: it was not, or from other sources; says how to.

        """
        found = find_guest(self.layout.cache)
        if found is None:
            raise LabError(
                f"no QEMU guest of this checkout is built in {self.root}: "
                f"python -m vmferry_lab --state-dir {shlex.quote(str(self.root))} guest"
            )
        return found

    def is_up(self) -> bool:
        """Whether every host's QEMU runs."""
        return self.layout.state.exists() and all(host.machine.running() for host in self.hosts())

    def hosts(self) -> list[Host]:
        """The hosts of a laboratory that is up, the Xen hosts first.

        Raises:
            LabNotUp: there is none in this folder.

        """
        return [self._host(name, port) for name, port in self._state()["ports"].items()]

    @property
    def flavours(self) -> frozenset[str]:
        """What the laboratory was brought up with, ``storage`` for the third host among it.

        Raises:
            LabNotUp: there is none in this folder.

        """
        return frozenset(self._state().get("flavours", ()))

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self.layout.state.read_text())
        except FileNotFoundError:
            raise LabNotUp(f"no laboratory is up in {self.root}; `up` boots one") from None
        return state

    def host(self, name: str) -> Host:
        """One host by name.

        Raises:
            LabError: there is none of that name; lists those there are.
            LabNotUp: the laboratory is not up.

        """
        hosts = {host.name: host for host in self.hosts()}
        if name not in hosts:
            raise LabError(f"no host {name}; there are {', '.join(hosts)}")
        return hosts[name]

    def share_disk(self, name: str, size: int) -> str:
        """Make a disk of ``size`` bytes that both Xen hosts see, and return its device there.

        Raises:
            LabError: there is no third host to have it.

        """
        return share_disk(self.host(STORAGE.name), self.xen_hosts(), name, size)

    def unshare_disk(self, name: str) -> None:
        """Remove a shared disk, if it is there."""
        unshare_disk(self.host(STORAGE.name), self.xen_hosts(), name)

    def mirror_disk(self, name: str, size: int) -> Mirror:
        """Make a disk of ``size`` bytes on each Xen host, for DRBD to mirror from the first.

        Raises:
            CommandFailed: there is no DRBD in the hosts, for one; :meth:`unmirror_disk` is due.

        """
        source, destination = self.xen_hosts()
        return make_mirror(source, destination, name, size)

    def unmirror_disk(self, name: str) -> None:
        """Remove a mirrored disk, whatever there is of it; its guest must have gone."""
        remove_mirror(self.xen_hosts(), name)

    def xen_hosts(self) -> list[Host]:
        """The hosts that run Xen."""
        return [host for host in self.hosts() if host.name != STORAGE.name]

    def _host(self, name: str, port: int) -> Host:
        layout = self.layout
        machine = Machine(name, layout.run, layout.qemu_log(name))
        return Host(name, Ssh(name, port, layout.run), machine, layout.console(name))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one command at a time changes a laboratory."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabError(f"another command is at work on {self.root}; wait for it") from None
            yield

    def _plan(self, recipe: Recipe, *, storage: bool) -> preparing.Plan:
        image = self._image(recipe)
        self.say("fetching what vmferry depends on, if new")
        return preparing.Plan(
            layout=self.layout,
            places=[*HOSTS, *([STORAGE] if storage else [])],
            image=image,
            host_initrd=build_host_initrd(self.layout.cache, image),
            initrd=build_initrd(self.layout.cache, image),
            kernel=build_kernel(self.layout.cache, image),
            fio=build_fio(self.layout.cache, image),
            dependencies=Environment(self.checkout, self.layout.cache).disk(),
            flavours=recipe.flavours,
        )

    def _image(self, recipe: Recipe) -> Image:
        found = find(self.layout.cache, recipe)
        if found is None:
            self.say(f"building image {recipe.key} from Debian packages, 1-3 minutes")
            self.layout.logs.mkdir(parents=True, exist_ok=True)
            found = build(self.layout.cache, recipe, self.layout.logs / "build.log")
        return found

    def _boot(self, plan: preparing.Plan, timeout: float) -> None:
        preparing.prepare(plan)
        hosts = self.hosts()
        for host in hosts:
            self.say(f"booting {host.name}; console: {host.console}")
            host.machine.start(plan.command_line(host.name, host.ssh.port))
        for host in hosts:
            host.wait(timeout=timeout)
            self.say(f"{host.name} is up")
        for host in hosts[1:]:
            hosts[0].reach(host.name, timeout=_LAN)

    def _install(self) -> None:
        environment = Environment(self.checkout, self.layout.cache)
        with tempfile.TemporaryDirectory(dir=self.layout.root, prefix="install-") as scratch:
            tree = environment.build(Path(scratch))
            hosts = self.xen_hosts()
            self.say(f"installing vmferry on {' and '.join(host.name for host in hosts)}")
            with ThreadPoolExecutor(len(hosts)) as pool:
                list(pool.map(lambda host: environment.deploy(host, tree), hosts))

    def _end(self) -> None:
        if self.layout.state.exists():
            for host in self.hosts():
                host.ssh.close()
                host.machine.power_off()
        shutil.rmtree(self.layout.run, ignore_errors=True)
