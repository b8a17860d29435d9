"""A host as a QEMU process: its command line, its start, its end."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from vmferry_lab.commands import run
from vmferry_lab.errors import BootFailed
from vmferry_lab.layout import LAN_MTU, Place
from vmferry_lab.qmp import ask

__all__ = ["Machine", "Shape", "command_line"]

XEN_ARGUMENTS = "console=com1 com1=115200,8n1 dom0_mem={dom0},max:{dom0} dom0_max_vcpus=1"
KERNEL_ARGUMENTS = "console={console} root=/dev/vda rw net.ifnames=0 mitigations=off"


@dataclass(frozen=True)
class Shape:
    """How large a host is and how it is emulated.

    Attributes:
        memory: MiB of the whole host.
        dom0: MiB of it for Xen's dom0; the rest is for guests.
        cpu: QEMU's name of the CPU. Guests that can migrate need ``svm`` and ``npt``; anything
            with SMAP, ``max`` among it, crashes dom0 under TCG.
        accel: QEMU's accelerator. ``kvm`` needs nested virtualisation for Xen's guests.
        xen: whether Xen is booted below the kernel.

    """

    memory: int = 3072
    dom0: int = 1024
    cpu: str = "qemu64,+svm,+npt,+ssse3,+sse4.1,+sse4.2,+popcnt"
    accel: str = "tcg,thread=multi"
    xen: bool = True


def command_line(
    place: Place, shape: Shape, *, ssh_port: int, peers: list[str], hub: bool = False
) -> list[str]:
    """QEMU's arguments for a host; paths are relative to the ``run`` folder of the laboratory.

    Args:
        place: the host.
        shape: its size.
        ssh_port: the port of 127.0.0.1 that leads to its sshd.
        peers: the hosts at the other ends of its LAN cables.
        hub: whether it joins its cables with each other, which takes more than one.

    """
    name = place.name
    return [
        "qemu-system-x86_64",
        *("-name", f"vmferry-lab-{name}", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-accel", shape.accel, "-cpu", shape.cpu),
        *("-m", str(shape.memory), "-smp", "1", "-pidfile", f"{name}.pid"),
        *_boot(shape),
        *_drive(f"{name}.qcow2", "qcow2", "discard=unmap"),
        *_drive(f"{name}.seed", "raw", "readonly=on"),
        *_drive("dependencies.img", "raw", "readonly=on"),
        *_drive("guest.img", "raw", "readonly=on"),
        *("-netdev", f"user,id=way-in,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"),
        *("-device", f"virtio-net-pci,netdev=way-in,mac={place.mac(0)}"),
        *_lan(name, peers, hub=hub),
        *("-device", f"virtio-net-pci,netdev=lan,mac={place.mac(1)},host_mtu={LAN_MTU}"),
        *("-device", "virtio-rng-pci"),
        *(
            "-chardev",
            _socket("console", f"{name}.console", f",logfile=../logs/{name}.console.log"),
        ),
        *("-serial", "chardev:console"),
        *("-chardev", _socket("qmp", f"{name}.qmp"), "-mon", "chardev=qmp,mode=control"),
    ]


def _boot(shape: Shape) -> list[str]:
    if not shape.xen:
        arguments = KERNEL_ARGUMENTS.format(console="ttyS0")
        return ["-kernel", "vmlinuz", "-initrd", "initrd.img", "-append", arguments]
    arguments = KERNEL_ARGUMENTS.format(console="hvc0")
    xen = XEN_ARGUMENTS.format(dom0=f"{shape.dom0}M")
    return ["-kernel", "xen", "-append", xen, "-initrd", f"vmlinuz {arguments},initrd.img"]


def _drive(file: str, kind: str, more: str) -> list[str]:
    return ["-drive", f"file={file},format={kind},if=virtio,cache=unsafe,{more}"]


def _socket(name: str, path: str, logfile: str = "") -> str:
    log = f",logfile={logfile}" if logfile else ""
    return f"socket,id={name},path={path},server=on,wait=off{log}"


def _lan(name: str, peers: list[str], *, hub: bool) -> list[str]:
    if not hub:
        return ["-netdev", _cable("lan", name, peers[0])]
    arguments = ["-netdev", "hubport,id=lan,hubid=1"]
    for peer in peers:
        arguments += ["-netdev", _cable(f"to-{peer}", name, peer)]
        arguments += ["-netdev", f"hubport,id=port-{peer},hubid=1,netdev=to-{peer}"]
    return arguments


def _cable(name: str, here: str, there: str) -> str:
    """Datagrams, not a stream: either end may start, end and start again."""
    return (
        f"dgram,id={name},local.type=unix,local.path={here}-{there}.lan"
        f",remote.type=unix,remote.path={there}-{here}.lan"
    )


@dataclass(frozen=True)
class Machine:
    """A host's QEMU, known by its name and the laboratory's ``run`` folder."""

    name: str
    folder: Path
    log: Path

    def start(self, argv: list[str], *, timeout: float = 60.0) -> None:
        """Start QEMU, apart from this process and its terminal.

        Raises:
            BootFailed: QEMU ended at once; says what it complained about.

        """
        with self.log.open("wb") as log:
            log.write((" ".join(argv) + "\n").encode())
        script = 'exec "$@" </dev/null >>"$0" 2>&1'
        run(["setsid", "--fork", "sh", "-c", script, str(self.log), *argv], cwd=self.folder)
        self._await_start(time.monotonic() + timeout)

    def _await_start(self, deadline: float) -> None:
        while not self.running():
            said = self.log.read_text(errors="replace").partition("\n")[2]
            if said.strip() or time.monotonic() > deadline:
                raise BootFailed(f"QEMU of {self.name} did not start: {said.strip()}")
            time.sleep(0.1)

    @property
    def pid(self) -> int | None:
        """Its process, if that is truly this QEMU and not another that got its number."""
        try:
            pid = int((self.folder / f"{self.name}.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            here = Path(f"/proc/{pid}/cwd").resolve()
        except (OSError, ValueError):
            return None
        ours = f"vmferry-lab-{self.name}".encode() in words and here == self.folder.resolve()
        return pid if ours else None

    def running(self) -> bool:
        """Whether QEMU runs."""
        return self.pid is not None

    def power_off(self, *, timeout: float = 30.0) -> None:
        """End QEMU as pulling the plug would; done when the process is gone."""
        deadline = time.monotonic() + timeout
        sent = signal.SIGTERM
        while (pid := self.pid) is not None:
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                return
            time.sleep(0.1)
            if time.monotonic() > deadline:
                sent = signal.SIGKILL

    def reset(self) -> None:
        """Reset the host as its button would: what was not on disk is lost."""
        self.monitor("system_reset")

    def monitor(self, command: str) -> object:
        """Have QEMU carry out a command without arguments (QMP) and return its answer."""
        return ask(self.folder, f"{self.name}.qmp", command)
