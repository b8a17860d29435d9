"""What makes a host out of the common image: an archive it unpacks over its root at boot."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from vmferry_lab.keys import Keys
from vmferry_lab.layout import LAN_MTU, Place

__all__ = ["write_seed"]


def write_seed(target: Path, place: Place, places: list[Place], keys: Keys) -> None:
    """Write the archive of a host; QEMU shows it as the host's second disk.

    Nothing large belongs in it: a host has no network before it is unpacked.

    Args:
        target: the archive.
        place: the host.
        places: every host of the laboratory, for ``/etc/hosts``.
        keys: the laboratory's keys.

    """
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path, (mode, content) in _files(place, places, keys).items():
            _add(tar, path, mode, content.encode())


def _files(place: Place, places: list[Place], keys: Keys) -> dict[str, tuple[int, str]]:
    own = keys.host(place.name)
    private, public = keys.user.read_text(), keys.user.with_suffix(".pub").read_text()
    return {
        "etc/hostname": (0o644, f"{place.name}\n"),
        "etc/hosts": (0o644, _hosts(places)),
        "etc/systemd/network/30-xenbr0.network": (0o644, _network(place)),
        "etc/ssh/ssh_host_ed25519_key": (0o600, own.read_text()),
        "etc/ssh/ssh_host_ed25519_key.pub": (0o644, own.with_suffix(".pub").read_text()),
        "etc/ssh/ssh_known_hosts": (0o644, keys.known_hosts.read_text()),
        "root/.ssh/id_ed25519": (0o600, private),
        "root/.ssh/id_ed25519.pub": (0o644, public),
        "root/.ssh/authorized_keys": (0o600, public),
    }


def _hosts(places: list[Place]) -> str:
    lines = [f"{place.address} {place.name}\n" for place in places]
    return "127.0.0.1 localhost\n" + "".join(lines)


def _network(place: Place) -> str:
    return (
        f"[Match]\nName=xenbr0\n\n[Link]\nMTUBytes={LAN_MTU}\n\n"
        f"[Network]\nAddress={place.address}/24\nConfigureWithoutCarrier=yes\n"
    )


def _add(tar: tarfile.TarFile, path: str, mode: int, content: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.mode, member.size = mode, len(content)
    tar.addfile(member, io.BytesIO(content))
