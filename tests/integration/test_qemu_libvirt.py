"""A guest that libvirt started, in the domain XML that docs/qemu.md asks for."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from qemu_hosts import MIB, QemuHosts

from vmferry_hypervisors.qemu.trial import ROLES
from vmferry_hypervisors.qemu.workload.record import Record
from vmferry_hypervisors.qemu.workload.recording import Recording
from vmferry_hypervisors.qemu.workload.trial_options import make_program

DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>demo</name>
  <memory unit='b'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' discard='unmap'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='unix'><source mode='connect' path='{serial}'/></serial>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{qmp},server=on,wait=off'/>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{control},server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""
NAME = "virtio-disk0"
SERIAL = "-device isa-serial,id=serial0,chardev=serial"
MODULES = "lib/x86_64-linux-gnu/qemu"
BIND = 'mount --bind "$0" "/usr/$1" && shift && exec "$@"'


def _amiss() -> str:
    """Why libvirt cannot start a guest here; empty if it can."""
    if shutil.which("virt-qemu-run") is None:
        return "virt-qemu-run (libvirt-daemon-driver-qemu) is not installed"
    if os.geteuid():
        return "libvirt is tried as root only"
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        return "there is no user libvirt-qemu (libvirt-daemon-system), which libvirt looks for"
    return ""


pytestmark = [
    pytest.mark.guest,
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(_amiss()), reason=_amiss() or "all is there"),
]


def _with_modules(emulator: str) -> list[str]:
    """What to start libvirt with, so that a QEMU elsewhere finds its own modules.

    It looks for them in /usr/lib, and when libvirt asks it for all its devices it dies of those of
    another build.
    """
    own = Path(emulator).resolve().parents[1] / MODULES
    if own.parents[2] == Path("/usr") or not own.is_dir() or not Path("/usr", MODULES).is_dir():
        return []
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", BIND, str(own), MODULES]


class LibvirtHosts(QemuHosts):
    """The source's QEMU is libvirt's, which has a root folder of its own."""

    libvirt: subprocess.Popen[str]

    async def start(self, size: int = 16 * MIB) -> None:
        trial: Any = self.trial
        trial.program = make_program(trial.options, size)
        trial._folder = self.folder
        for role in ROLES:
            (self.folder / role).mkdir()
        await trial._make_disks()
        serial = self.folder / "serial.sock"
        trial._recording = await Recording.start(serial, self.folder / "record")
        trial.record = Record(self.folder / "record")
        self._start_libvirt(serial)
        await trial._first_word()

    def _start_libvirt(self, serial: Path) -> None:
        emulator = shutil.which("qemu-system-x86_64") or ""
        domain, settings = self.folder / "demo.xml", self.folder / "root/etc/qemu.conf"
        settings.parent.mkdir(parents=True)
        settings.write_text('user = "root"\ngroup = "root"\nstdio_handler = "file"\n')
        text = DOMAIN.format(
            memory=self.trial.options.memory,
            emulator=emulator,
            disk=self.trial.disks["disk0"],
            serial=serial,
            qmp=self.trial.socket("source"),
            control=self.trial.control("source"),
        )
        domain.write_text(text)
        words = ["virt-qemu-run", "--root", str(self.folder / "root"), str(domain)]
        self.libvirt = subprocess.Popen(
            [*_with_modules(emulator), *words], stderr=subprocess.PIPE, text=True
        )

    def _options(self, role: str) -> list[str]:
        command = (
            self.trial.command(role)
            .replace("disk0", NAME)
            .replace("-serial chardev:serial", SERIAL)
        )
        settings = [f"sockets={self.folder / role}"]
        settings += [f"command={command}"] if role == "destination" else []
        return [word for each in settings for word in ("--hypervisor-opt", each)]

    @property
    def arrived(self) -> list[Path]:
        return [self.folder / "pool" / f"demo-{NAME}.raw"]

    def thinks(self) -> str:
        """What libvirt has noted of its guest; nothing once that has ended."""
        path = self.folder / "root/run/qemu/demo.xml"
        found = (
            re.search("<domstatus state='([a-z]+)'", path.read_text()) if path.exists() else None
        )
        return found[1] if found else ""

    async def close(self) -> None:
        await super().close()
        if hasattr(self, "libvirt"):
            self.libvirt.terminate()
            await asyncio.to_thread(self.libvirt.communicate)


async def test_a_guest_of_libvirt_moves_and_libvirt_sees_it_end() -> None:
    with tempfile.TemporaryDirectory(prefix="vm-") as folder:
        hosts = LibvirtHosts(Path(folder), write_rate=150)
        try:
            await hosts.start()
            assert hosts.thinks() == "running"
            summary = await hosts.moved("--threshold", "8MiB")
            assert summary["owner"] == "destination"
            await hosts.goes_on()
            await hosts.until_true(lambda: not hosts.thinks())
            verdict = await hosts.judge_there()
            assert verdict.good, verdict
            assert len(hosts.trial.record.switches) == 1
        finally:
            await hosts.close()
