"""Sizes, rates and durations as people write and read them.

Sizes are bytes, rates bytes per second, durations seconds. Input accepts ``512``, ``4KiB``,
``1.5 GiB``, ``10MB`` and the short ``4k``/``1G`` (binary, as in dd and QEMU); output is binary.
"""

from __future__ import annotations

import re

from vmferry.errors import InputError

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "SECTOR",
    "TIB",
    "format_duration",
    "format_rate",
    "format_size",
    "parse_duration",
    "parse_rate",
    "parse_size",
]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
SECTOR = 512
"""Bytes of the sector that block-layer interfaces count in, whatever the device's own."""

_BINARY = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB, "p": 1024 * TIB}
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp]?)(i?)(b?))\s*", re.IGNORECASE)
_TIMES = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|)\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes meant by ``text``; raises ``InputError`` naming it when it is not a whole size."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise InputError(f"{text!r} is not a size; write e.g. 4096, 64KiB or 1.5GiB")
    number, prefix, binary, byte = match.groups()
    scale = _BINARY if binary or not (prefix and byte) else _DECIMAL
    size = (float(number) if "." in number else int(number)) * scale[prefix.lower()]
    if size != int(size):
        raise InputError(f"{text!r} is not a whole number of bytes")
    return int(size)


def parse_rate(text: str) -> int:
    """Bytes per second meant by ``text`` (``100MiB/s``, ``1Gbit/s``); 0 means no limit."""
    body = text.strip()
    if body.lower() in {"0", "none", "unlimited"}:
        return 0
    body = re.sub(r"/s(ec)?$", "", body, flags=re.IGNORECASE)
    if body.lower().endswith(("bit", "bits")):
        bits = re.sub(r"bits?$", "", body, flags=re.IGNORECASE)
        return parse_size(f"{bits}B") // 8
    return parse_size(body)


def parse_duration(text: str) -> float:
    """Seconds meant by ``text``: ``30``, ``500ms``, ``2m``, ``1h``."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise InputError(f"{text!r} is not a duration; write e.g. 30s, 500ms or 2m")
    return float(match[1]) * _TIMES[match[2].lower()]


def format_size(size: float) -> str:
    """``size`` bytes for people: ``512 B``, ``64.0 KiB``, ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def format_rate(rate: float) -> str:
    """``rate`` bytes per second for people: ``93.1 MiB/s``."""
    return f"{format_size(rate)}/s"


def format_duration(seconds: float) -> str:
    """``seconds`` for people: ``3.2 ms``, ``45.1 s``, ``2:05``, ``1:02:05``."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
