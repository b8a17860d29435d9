"""BLAKE3 of what travels, checked before it is used."""

from __future__ import annotations

from blake3 import blake3

from vmferry.errors import DigestMismatch

__all__ = ["check_digest", "digest_of"]


def digest_of(data: memoryview | bytes) -> bytes:
    """The 32 bytes that go with ``data``."""
    return blake3(data).digest()


def check_digest(what: str, data: memoryview | bytes, digest: bytes) -> None:
    """Raise ``DigestMismatch`` naming ``what`` unless ``digest`` is that of ``data``."""
    if digest_of(data) != digest:
        raise DigestMismatch(f"{what}: the data does not match its BLAKE3 digest")
