"""Whether the running kernel can do what the ``blkback`` tracker needs. Blocks."""

from __future__ import annotations

import errno

from vmferry.api.findings import Finding
from vmferry_trackers.blkback.device import BlockDevice
from vmferry_trackers.blkback.record import Record
from vmferry_trackers.ebpf import kernel
from vmferry_trackers.ebpf.btf import BtfError

__all__ = ["kernel_findings"]

_BLOCK_SIZE = 4096


def kernel_findings(device: BlockDevice) -> list[Finding]:
    """What is missing, by trying: programs are loaded and not attached, and unloaded again."""
    if not kernel.supported():
        return [
            Finding.error(
                "blkback-machine",
                "the blkback tracker does not know this machine's bpf system call",
                "choose another tracker, e.g. dm-era",
            )
        ]
    try:
        Record(device._replace(sectors=8), _BLOCK_SIZE).close()
    except BtfError as error:
        return [
            Finding.error(
                "blkback-btf",
                f"the kernel does not say where its fields are: {error}",
                "use a kernel built with CONFIG_DEBUG_INFO_BTF, or another tracker",
            )
        ]
    except kernel.BpfError as error:
        return [Finding.error("blkback-ebpf", f"the kernel refuses: {error}", _remedy(error))]
    return []


def _remedy(error: kernel.BpfError) -> str:
    if error.number in {errno.EPERM, errno.EACCES}:
        return (
            "run as root, or with CAP_BPF and CAP_PERFMON; a kernel locked down for "
            "confidentiality refuses in any case"
        )
    if error.number == errno.ENOSYS:
        return "use a kernel built with CONFIG_BPF_SYSCALL, or another tracker"
    return "use Linux 5.12 or later with CONFIG_BPF_EVENTS, or another tracker"
