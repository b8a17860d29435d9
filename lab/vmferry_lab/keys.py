"""The ssh keys of one laboratory: one for its user and hosts, one of each host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmferry_lab.commands import run
from vmferry_lab.layout import Place

__all__ = ["Keys", "make_keys"]


@dataclass(frozen=True)
class Keys:
    """Key files in a folder."""

    folder: Path

    @property
    def user(self) -> Path:
        """The private key that opens every host, from outside and from host to host."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The hosts' public keys, by name and address."""
        return self.folder / "known_hosts"

    def host(self, name: str) -> Path:
        """A host's own private key."""
        return self.folder / f"{name}_ed25519"


def make_keys(folder: Path, places: list[Place]) -> Keys:
    """Make what is missing; keys that are there stay."""
    keys = Keys(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    _make(keys.user, "vmferry-lab")
    lines = []
    for place in places:
        _make(keys.host(place.name), place.name)
        public = keys.host(place.name).with_suffix(".pub").read_text()
        lines.append(f"{place.name},{place.address} {public}")
    keys.known_hosts.write_text("".join(lines))
    return keys


def _make(path: Path, comment: str) -> None:
    if not path.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])
