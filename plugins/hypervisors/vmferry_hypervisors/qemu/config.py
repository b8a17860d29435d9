"""What must be the same on both sides, and what QEMU would not notice if it were not.

QEMU checks machine type, memory and the state of each device that the stream names. It takes in
silence a device that only the destination has, and another model of processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from vmferry.errors import HypervisorError

__all__ = ["VERSION", "Config", "decode_config", "differences"]

VERSION = 1
Text = Annotated[str, Meta(max_length=256)]


class _Version(msgspec.Struct):
    version: int


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A QEMU's guest as far as the other side must have the like; travels in ``Guest.config``.

    Attributes:
        version: of this structure.
        qemu: version of QEMU.
        machine: versioned type of the machine, ``pc-i440fx-7.2``.
        cpu: type of the processors, ``qemu64-x86_64-cpu``; empty if QEMU does not tell.
        features: words of processor features by the register that shows them.
        devices: PCI devices by place and identity, other devices by type.

    """

    version: int = VERSION
    qemu: tuple[int, int, int]
    machine: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    cpu: Text = ""
    features: Annotated[dict[Text, int], Meta(max_length=1024)] = {}
    devices: Annotated[tuple[Text, ...], Meta(max_length=4096)] = ()


def decode_config(data: bytes) -> Config:
    """Read what came from the network; ``HypervisorError`` if it is not ours or of a later kind."""
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            raise HypervisorError(f"configuration of version {version}, not {VERSION}")
        return msgspec.json.decode(data, type=Config)
    except ValueError as error:
        raise HypervisorError(f"configuration: {error}") from error


def differences(source: Config, here: Config) -> list[str]:
    """Why a guest of ``source`` cannot go on in ``here``, in words; empty if it can."""
    found = []
    if source.machine != here.machine:
        found.append(f"machine type {here.machine} where the source has {source.machine}")
    if source.cpu != here.cpu:
        found.append(f"processor {here.cpu or 'unknown'} where the source has {source.cpu}")
    missing = _missing_features(source.features, here.features)
    if missing:
        found.append(f"processor features that the source has are missing: {', '.join(missing)}")
    found += _devices(Counter(source.devices), Counter(here.devices))
    return found


def _missing_features(source: Mapping[str, int], here: Mapping[str, int]) -> list[str]:
    lacking = {word: bits & ~here.get(word, 0) for word, bits in source.items()}
    return [f"{word}:{bits:#x}" for word, bits in sorted(lacking.items()) if bits]


def _devices(source: Counter[str], here: Counter[str]) -> list[str]:
    lacking = [f"device {name} is missing" for name in sorted((source - here).elements())]
    more = [f"device {name} is not in the source" for name in sorted((here - source).elements())]
    return lacking + more
