"""Guests on a host: disks made, domains started, asked and ended."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmferry_lab.errors import CommandFailed, LabError
from vmferry_lab.guest import (
    INITRD,
    KERNEL_FOLDER,
    FioReport,
    GuestConfig,
    Report,
    Verdict,
    decoded,
    fio_report,
)
from vmferry_lab.guestfio import job_initrd

if TYPE_CHECKING:
    from vmferry_lab.host import Host

__all__ = ["Domains"]

_LOGS = "/var/log/xen/console/guest-"
"""Consoles' logs; a guest that arrived has one of its own, named after its passing name."""
_FIO = f"{KERNEL_FOLDER}/fio.img"


class Domains:
    """The guests of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def make_disk(self, name: str, size: int) -> str:
        """Make a disk of zeroes and return its device.

        It is a sparse file below a loop device below a device-mapper device, so that other tables
        can be put below the guest while it runs.

        Args:
            name: its name under ``/dev/mapper``.
            size: bytes; a multiple of 4096.

        """
        file = shlex.quote(f"/srv/disks/{name}.img")
        self._host.run(
            f"set -e; test ! -e {file}; truncate -s {size} {file};"
            f" loop=$(losetup --find --show --direct-io=on {file});"
            f' dmsetup create {shlex.quote(name)} --table "0 {size // 512} linear $loop 0"'
        )
        return f"/dev/mapper/{name}"

    def remove_disk(self, name: str) -> None:
        """Remove a disk, if it is there."""
        quoted, file = shlex.quote(name), shlex.quote(f"/srv/disks/{name}.img")
        self._host.run(
            f"if dmsetup info {quoted} >/dev/null 2>&1; then dmsetup remove --retry {quoted}; fi;"
            f" for loop in $(losetup --noheadings --output NAME --associated {file});"
            f" do losetup --detach $loop; done; rm -f {file}"
        )

    def start(
        self,
        name: str,
        disks: Sequence[str],
        /,
        *,
        memory: int = 128,
        network: bool = False,
        backend: str = "phy",
        fio: str = "",
        timeout: float = 300.0,
        **writer: str | int,
    ) -> None:
        """Start a guest and wait until its writer has its disks open, and fio is at work.

        Args:
            name: the domain.
            disks: block devices of the host.
            memory: MiB.
            network: whether it has a network card on the LAN.
            backend: what serves its disks, ``phy`` or ``qdisk``.
            fio: text of a job file. fio does it over and over on the first disk, until it fails,
                each time with a ``randseed`` of its own after the writer's ``seed`` and its
                checksums in another place, ``direct=1`` unless the job says otherwise; the writer
                has the other disks.
            timeout: seconds to wait.
            writer: its writer's options, as in ``lab/guest/options.h``.

        Raises:
            LabError: it cannot use its disks, fio does not begin its job, or the laboratory's
                guests have no fio.
            CommandFailed: Xen refused it, or it did not start in time.

        """
        initrd = self._fio_initrd(name, fio, int(writer.get("seed", 1))) if fio else INITRD
        config = GuestConfig(name, disks, memory, writer, network, backend, initrd, bool(fio))
        path = shlex.quote(f"/srv/disks/{name}.cfg")
        self._host.run(
            f"rm -f {_LOGS}{name}.log {_LOGS}{name}--*.log; cat > {path}",
            stdin=config.text().encode(),
        )
        self._create(name, path, timeout)
        first = self._await_line(name, "^(START|FATAL) ", timeout)
        if first.startswith("FATAL"):
            raise LabError(f"guest {name} cannot use its disks: {first}")
        if fio:
            self._await_line(name, "^FIO .*[}]", timeout)
            if any(report.code or report.error for report in self.fio(name)):
                raise LabError(f"fio in guest {name} does not do its job: {self.fio_said(name)}")

    def _fio_initrd(self, name: str, job: str, seed: int) -> str:
        if not self.have_fio():
            raise LabError("the guests have no fio: python -m vmferry_lab up --with fio")
        path = f"/srv/disks/{name}.initrd"
        packed = job_initrd(job, "/dev/xvda", seed)
        self._host.run(f"cat {INITRD} {_FIO} - > {shlex.quote(path)}", stdin=packed)
        return path

    def have_fio(self) -> bool:
        """Whether guests can run fio: the laboratory is up with that flavour."""
        return bool(self._host.run(f"if test -e {_FIO}; then echo yes; fi"))

    def fio(self, name: str) -> list[FioReport]:
        """All that the guest's fio has reported on this host so far.

        A line that was cut in two when the guest was moved is left out.
        """
        lines = self.console(name).splitlines()
        return [report for line in lines if (report := fio_report(line))]

    def fio_said(self, name: str) -> str:
        """What the guest's fio has complained of on this host."""
        return self._host.run(f"grep -h '^FIO-SAID ' {self._newest(name)} | cut -d ' ' -f 2- || :")

    def fio_pass(self, name: str, *, timeout: float = 600.0) -> FioReport:
        """Wait until the pass ends that the guest's fio is at, and return its last report.

        Args:
            name: the domain; it runs on this host.
            timeout: seconds.

        """
        self._await_line(name, "^FIO .*[}]", timeout)
        number = self.fio(name)[-1].number
        line = self._await_line(name, f'^FIO .*"pass": {number}, .*"code": [0-9].*[}}]', timeout)
        return decoded(line, FioReport)

    def booted(self, name: str) -> float:
        """When the guest's ``uptime`` was 0, by the host's clock, in seconds since 1970.

        Right to some tenths of a second, and as long as the hosts agree on the time.
        """
        script = (
            f"tail -n 0 -F {self._newest(name)} 2>/dev/null |"
            " { grep -m 1 '^REPORT .*[}]'; date +%s.%N; }"
        )
        line, now = self._host.run(["timeout", "120", "sh", "-c", script]).splitlines()
        return float(now) - decoded(line, Report).uptime

    def _create(self, name: str, path: str, timeout: float) -> None:
        """Once more if libxl has not given a script the time that a busy machine needs."""
        try:
            self._host.run(f"xl create {path}", timeout=timeout)
        except CommandFailed as failed:
            if "because of timeout" not in failed.complaint:
                raise
            self.destroy(name)
            self._host.run(f"xl create {path}", timeout=timeout)

    def order(self, name: str, line: str) -> None:
        """Type a line on a guest's console: ``rate N``, ``reset``, ``quit``."""
        self._host.run(
            f"domain=$(xl domid {shlex.quote(name)}) &&"
            " tty=$(xenstore-read /local/domain/$domain/console/tty) &&"
            f" echo {shlex.quote(line)} > $tty"
        )

    def report(self, name: str, *, timeout: float = 120.0) -> Report:
        """What the guest said last, on this host."""
        self._await_line(name, "^REPORT .*[}]", timeout)
        line = self._host.run(f"grep -h '^REPORT .*[}}]' {self._newest(name)} | tail -n 1")
        return decoded(line, Report)

    def verdict(self, name: str, *, timeout: float = 600.0) -> Verdict:
        """Have the guest, wherever its disk is by now, compare everything it wrote.

        Args:
            name: the domain; it runs on this host.
            timeout: seconds; a check under emulation reads some 10 MiB a second.

        """
        number = secrets.token_hex(6)
        self.order(name, f"check {number}")
        line = self._await_line(name, f'^VERDICT .*"id": "{number}".*[}}]', timeout)
        return decoded(line, Verdict)

    def console(self, name: str) -> str:
        """Everything the guest wrote to its console on this host."""
        return self._host.run(f"cat {self._newest(name)}")

    def running(self) -> list[str]:
        """The names of the guests on this host, whatever state they are in."""
        lines = self._host.run("xl list").splitlines()[2:]
        return [line.split()[0] for line in lines]

    def destroy(self, name: str) -> None:
        """End a guest at once, if it is here."""
        quoted = shlex.quote(name)
        self._host.run(
            f"if xl domid {quoted} >/dev/null 2>&1; then xl destroy {quoted}; fi;"
            f" rm -f /srv/disks/{quoted}.initrd"
        )

    def _await_line(self, name: str, pattern: str, timeout: float) -> str:
        script = (
            f"until grep -hE -m 1 {shlex.quote(pattern)} {self._newest(name)}; do sleep 1; done"
        )
        try:
            bounded = ["timeout", str(int(timeout)), "sh", "-c", script + " 2>/dev/null"]
            return self._host.run(bounded, timeout=timeout + 60)
        except CommandFailed as failed:
            tail = self._host.run(f"tail -n 5 {self._newest(name)} 2>&1 || true")
            raise LabError(
                f"guest {name} on {self._host.name} said no line {pattern} in {timeout:.0f} s:"
                f"\n{tail}"
            ) from failed

    @staticmethod
    def _newest(name: str) -> str:
        """Shell words for the log that was written last; found anew each time they are run."""
        start = shlex.quote(_LOGS + name)
        return f"$(ls -t {start}.log {start}--*.log 2>/dev/null | head -n 1)"
